// node browser.mjs CHROMIUM RELEASE JOBS: run the jobs one after another in a page of headless Chromium that a server on
// this machine gives; prints a list of results (or of { error }) as the last line. All folders lie in one.
import * as fs from 'node:fs';
import * as http from 'node:http';
import { createRequire } from 'node:module';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';

const here = path.dirname(fileURLToPath(import.meta.url));
const [chromium, release, jobs] = process.argv.slice(2);
const transformers = path.dirname(packageOf(`transformers-${release}`, here));
const runtime = path.dirname(packageOf('onnxruntime-web', transformers));
const TYPES = { '.html': 'text/html', '.mjs': 'text/javascript', '.js': 'text/javascript', '.json': 'application/json',
  '.wasm': 'application/wasm' };
const FLAGS = ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'];

function packageOf(name, from) {
  // Not by require.resolve alone: a package's own exports may hide its package.json.
  for (const folder of createRequire(path.join(from, 'x.js')).resolve.paths(name)) {
    const found = path.join(folder, name, 'package.json');
    if (fs.existsSync(found)) return fs.realpathSync(found);
  }
  throw new Error(`${name} is not installed`);
}

function serve(models) {
  const roots = { page: here, transformers: path.join(transformers, 'dist'), runtime: path.join(runtime, 'dist'), models };
  const server = http.createServer((request, response) => {
    const [, root, ...rest] = decodeURIComponent(new URL(request.url, 'http://x').pathname).split('/');
    const file = path.join(roots[root] ?? '/nowhere', ...rest);
    // A page that is isolated from others may use several threads.
    const headers = { 'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp' };
    if (!fs.existsSync(file) || !fs.statSync(file).isFile()) return response.writeHead(404, headers).end();
    headers['Content-Type'] = TYPES[path.extname(file)] ?? 'application/octet-stream';
    headers['Content-Length'] = fs.statSync(file).size;
    response.writeHead(200, headers);
    return request.method === 'HEAD' ? response.end() : fs.createReadStream(file).pipe(response);
  });
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
}

async function run(browser, jobs) {
  const server = await serve(path.dirname(jobs[0].path));
  const page = await browser.newPage();
  page.on('console', (message) => console.error('[page]', message.text().slice(0, 400)));
  page.on('pageerror', (error) => console.error('[page]', String(error).slice(0, 400)));
  try {
    await page.goto(`http://127.0.0.1:${server.address().port}/page/page.html`, { timeout: 0 });
    await page.waitForFunction('window.run', { timeout: 0 });
    const results = [];
    for (const job of jobs) {
      results.push(await page.evaluate((given) => window.run(given).catch((error) => ({ error: String(error) })),
        { ...job, folder: path.basename(job.path) }));
    }
    return results;
  } finally {
    await page.close().catch(() => {});  // a browser that died: what it said before is the news
    server.close();
  }
}

// A busy machine takes its time.
const PATIENCE = 600000;
const browser = await puppeteer.launch({ executablePath: chromium, headless: true, args: FLAGS, timeout: PATIENCE,
  protocolTimeout: PATIENCE });
const results = await run(browser, JSON.parse(jobs));
await browser.close();
console.log(JSON.stringify(results));
process.exit(0);

// node node.mjs RELEASE JOBS: run each job in Node; prints a list of results as the last line.
import * as path from 'node:path';
import { generate } from './generate.mjs';

const [release, jobs] = process.argv.slice(2);
const transformers = await import(`transformers-${release}`);
const results = [];
for (const job of JSON.parse(jobs)) {
  transformers.env.allowRemoteModels = false;
  transformers.env.localModelPath = path.dirname(job.path);
  results.push(await generate(transformers, { ...job, folder: path.basename(job.path) }));
}
console.log(JSON.stringify(results));

"""The style sheet of the page: colours for light and dark, and a layout that also fits a phone of 360 pixels.

Text has a contrast of at least 4.5 to 1 with its background in both themes (a test computes it), and no meaning
depends on colour alone. On narrow screens, wide tables become lists of rows or scroll inside their own frame.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DARK", "LIGHT", "STYLE"]

LIGHT: Mapping[str, str] = {
    "ink": "#1b2130", "paper": "#ffffff", "card": "#f5f6f9", "line": "#d6dbe5", "soft": "#535d70",
    "pass": "#126b43", "fail": "#b0231b", "not_run": "#775300", "link": "#1a56c4",
    "shipped": "#1a56c4", "quantization": "#a84a00", "end_to_end": "#7a35b5", "heat": "232 120 20",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "ink": "#e6e9ef", "paper": "#13161c", "card": "#1c2129", "line": "#363e4c", "soft": "#a6b0c0",
    "pass": "#5fd39a", "fail": "#ff8f85", "not_run": "#e8be5a", "link": "#82b4ff",
    "shipped": "#82b4ff", "quantization": "#ffad66", "end_to_end": "#d3a6ff", "heat": "205 92 0",
}  # fmt: skip

LAYOUT = """
*, ::before, ::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
       background: var(--paper); max-width: 70rem; margin: 0 auto; padding: 1.25rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .75rem; } h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 44rem; } li, dd, td { overflow-wrap: anywhere; }
a { color: var(--link); } .soft, figcaption, caption { color: var(--soft); }
small, figcaption, caption { font-size: .875rem; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .not_run { color: var(--not_run); }
.status { font-weight: 600; white-space: nowrap; }
.status svg { width: 1em; height: 1em; vertical-align: -.12em; margin-right: .35em; }
.status path { fill: none; stroke: currentColor; stroke-width: 2.4; stroke-linecap: round; stroke-linejoin: round; }

.verdict { border: 1px solid var(--line); border-left: .4rem solid currentColor; border-radius: .5rem;
           background: var(--card); padding: .9rem 1.1rem; margin: 0 0 1.25rem; }
.verdict > * { max-width: none; } .verdict .status { font-size: 1.35rem; line-height: 1.3; margin: 0; }
.verdict .why { color: var(--ink); margin: .3rem 0 0; } .verdict ul.why { padding-left: 1.15rem; }

dl { margin: .5rem 0; } dt { color: var(--soft); font-size: .8125rem; line-height: 1.3; } dd { margin: 0; }
dl.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .75rem 1.25rem; }
dl.list > div { display: grid; grid-template-columns: minmax(0, 11rem) minmax(0, 1fr); gap: .1rem 1rem;
                padding: .35rem 0; border-top: 1px solid var(--line); align-items: baseline; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: .9rem;
         margin: .75rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; background: var(--card); padding: .8rem 1rem;
        display: grid; grid-row: span 4; grid-template-rows: subgrid; row-gap: 0; align-content: start; }
.card h3, .card h4 { display: flex; justify-content: space-between; gap: .5rem; margin: 0; font-size: 1rem; }
.card p { margin: .1rem 0 .5rem; line-height: 1.4; }
.card .large { font-size: 1.5rem; font-weight: 600; margin: .35rem 0 0;
               font-variant-numeric: tabular-nums; line-height: 1.2; }
.card dl { display: grid; grid-template-columns: 1fr 1fr; align-content: start; gap: .4rem .5rem; margin: 0; }
.card dd { font-size: .9375rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 3rem;
           align-items: start; }
.columns > section { min-width: 0; }

figure { margin: .75rem 0; max-width: 32rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg .label { fill: var(--ink); }
.grid-line { stroke: var(--line); stroke-width: 1; }
.mark { fill: var(--series); stroke: var(--paper); stroke-width: 1.5; }
.series { fill: none; stroke: var(--series); stroke-width: 2; stroke-linejoin: round; }
.bad { stroke: var(--fail); stroke-width: 2.5; }
ul.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; padding: 0; margin: .25rem 0;
            font-size: .875rem; }
ul.legend svg { width: 1.9rem; height: .8rem; display: inline-block; vertical-align: middle; margin-right: .4rem; }

.wide { overflow-x: auto; max-width: 100%; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .4rem; } th { font-weight: 600; text-align: right; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } table.plain td { white-space: nowrap; }
table.heat { font-size: .8125rem; }
table.heat th, table.heat td { padding: .16rem .5rem; border: 0; text-align: right; }
table.heat td { background: rgb(var(--heat) / var(--share, 0)); border: 1px solid var(--paper); min-width: 2.6rem; }
table.heat td.outlier { outline: 2px solid var(--fail); outline-offset: -2px; font-weight: 600; }
details { margin: .6rem 0; } summary { cursor: pointer; }
details.report { border-top: 1px solid var(--line); margin: 0; }
details.report > summary { padding: .8rem 0; font-weight: 600; overflow-wrap: anywhere; }
details.report[open] { padding-bottom: 2rem; } details.report h2 { margin-top: .5rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem;
      margin: .5rem 0; font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
      white-space: pre-wrap; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }

.overview { width: 100%; font-size: .875rem; } .overview th, .overview td { padding: .35rem .45rem; }
.overview thead th { font-size: .8125rem; color: var(--soft); vertical-align: bottom; }
.overview tbody th { font-weight: 400; overflow-wrap: anywhere; min-width: 10rem; }
.overview :is(th, td).text { text-align: left; } .overview td { white-space: nowrap; }
@media (max-width: 52rem) {
  .overview, .overview tbody, .overview tr, .overview th, .overview td { display: block; }
  .overview thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .overview tbody tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)); gap: .4rem .7rem;
                       padding: .8rem 0; border-bottom: 1px solid var(--line); }
  .overview tbody th { grid-column: 1 / -1; font-weight: 600; }
  .overview tbody th, .overview tbody td { border: 0; padding: 0; text-align: left; white-space: normal; }
  .overview tbody td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .8125rem;
                               line-height: 1.3; }
}
@media (max-width: 30rem) {
  dl.list > div { grid-template-columns: minmax(0, 1fr); }
  table.heat { font-size: .75rem; } table.heat th, table.heat td { padding: .2rem .15rem; min-width: 0; }
  table.heat { width: 100%; } table.plain { width: 100%; font-size: .8125rem; }
  table.plain th, table.plain td { padding: .3rem .2rem; }
}
@media print { details.report { break-before: page; } body { max-width: none; } }
""".strip()


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


STYLE = f""":root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{LAYOUT}"""

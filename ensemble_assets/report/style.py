"""The page's style sheet: light and dark from the same rules, contrast of at least 4.5 for text and 3 for figures."""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "line": "#d0d7de",
    "bar": "#0b63b0",
    "limit": "#a8430d",
}
DARK = {
    "paper": "#14171c",
    "ink": "#e6e9ee",
    "soft": "#a3adb8",
    "line": "#3a424c",
    "bar": "#6cb2f2",
    "limit": "#f0a070",
}


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .2rem; }}
p, dd {{ color: var(--soft); margin: .2rem 0 .8rem; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem 1rem; margin: 1rem 0; }}
dt {{ color: var(--soft); font-size: .85rem; }}
dl > div > dd {{ margin: 0; color: var(--ink); font-size: 1.2rem; }}
nav a {{ margin-right: 1rem; color: var(--bar); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding: .3rem 0; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }}
th:first-child {{ padding-left: 0; }}
td.n, th.n {{ text-align: right; }}
svg {{ display: block; width: 100%; height: auto; margin: .4rem 0 1rem; }}
svg text {{ fill: var(--ink); font: 12px system-ui, sans-serif; }}
svg .small {{ fill: var(--soft); font-size: 11px; }}
svg .halo {{ paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }}
svg .bar {{ fill: var(--bar); }}
svg .curve {{ fill: none; stroke: var(--bar); stroke-width: 1.5; }}
svg .limit {{ stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 5 4; }}
svg .grid {{ stroke: var(--line); stroke-width: 1; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 1.5rem; }}
@media print {{ body {{ max-width: none; }} h2 {{ break-after: avoid; }} svg {{ break-inside: avoid; }} }}
"""

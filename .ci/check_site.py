"""Is the site in order? Every page goes the way of `nbdev_docs`, with Pandoc in the place of Quarto, and is looked through.

    python .ci/check_site.py              # print what is wrong, a line each; exit 1 where something is
    python .ci/check_site.py --out DIR    # and leave the pages in DIR, to be opened in a browser
    python .ci/check_site.py --mend       # first make outputs what a terminal would show of them: no progress bars; pictures in 256 colours,
                                          # no warnings with the paths of one machine

What is checked is as Quarto has it: text, outputs, figures, headings, links. How it looks is not.
"""
import argparse, base64, io, json, os, re, shutil, tempfile, warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import yaml
from PIL import Image
from make_readme import check as readme_fault, external, fence, pandoc, root, text

max_mb, max_px = 2, 720  # of a page with its figures; of anything that sets a width of its own
fits = {'pre': 'overflow-x: auto', 'table': 'overflow-x: auto', 'math': 'overflow-x: auto', 'img': 'max-width: 100%'}  # what styles.css must say
bar = re.compile('[\r█]')  # what only the output of a progress bar holds

def read(path): return path.read_text(encoding='utf-8')
def cells(path): return json.loads(read(path))['cells']
def notebooks(folder): return sorted(p for p in folder.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(folder).parts))


# From notebooks to pages

def process():
    "Every notebook as `nbdev_docs` hands it to Quarto, in _proc"
    import nbdev.quarto
    os.chdir(root)  # nbdev looks for settings.ini from here
    shutil.rmtree(root/'_proc', ignore_errors=True)
    nbdev.quarto._ensure_quarto = lambda: None  # it would install one
    warnings.filterwarnings('error', 'Found cells containing imports and other code')  # building the site runs such code
    nbdev.quarto.nbdev_proc_nbs.__wrapped__(n_workers=0)
    return root/'_proc'

def options(src):
    "The options of a cell, which Quarto reads as YAML"
    return yaml.safe_load('\n'.join(re.findall(r'^#\|\s*([\w-]+:.*)$', src, flags=re.M))) or {}

def figure(data, file, folder, alt, caption):
    "Write an image of an output to `folder/file`, and show it"
    raw = text(data)
    (folder/file).parent.mkdir(parents=True, exist_ok=True)
    (folder/file).write_bytes(raw.encode() if '<svg' in raw else base64.b64decode(raw))
    return f'![{caption}]({file}){{alt="{alt}"}}'.replace('\n', ' ')

def output_md(o, opts, i, file, folder, with_figure):
    "Output number `i` of a cell as markdown, in the div that Quarto puts around it"
    kind, data = o['output_type'], o.get('data', {})
    image = next((m for m in data if m.startswith('image/')), None)
    if kind == 'stream': body, kind = fence(text(o['text'])), o['name']
    elif kind == 'error': body = fence(f"{o['ename']}: {o['evalue']}")
    elif 'text/markdown' in data: body, kind = text(data['text/markdown']), 'markdown'
    elif image:
        alt, suffix = opts.get('fig-alt') or '', image[6:].split('+')[0]
        alt = str(alt[i] if isinstance(alt, list) else alt).replace('"', "'")
        body, kind = figure(data[image], f'{file}-{i}.{suffix}', folder, alt, opts.get('fig-cap') or ''), 'display'
    elif 'text/html' in data: body, kind = f"```{{=html}}\n{text(data['text/html'])}\n```", 'display'
    else:
        plain = text(data.get('text/plain'))
        if with_figure and re.match(r'\[?<|Text\(|array\(\[<', plain): return ''  # the axes of a figure that stands there itself
        body, kind = fence(plain), 'display'
    return body if opts.get('output') == 'asis' else f'::: {{.cell-output .cell-output-{kind}}}\n{body}\n:::'

def cell_md(c, n, name, folder):
    "Cell number `n` as markdown"
    src = text(c['source'])
    if c['cell_type'] != 'code': return '' if c['cell_type'] == 'raw' else src
    opts, outputs = options(src), c.get('outputs', [])
    if opts.get('include') is False: return ''
    src = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip('\n')
    res = [fence(src, '{.python .cell-code}') if opts.get('echo') is not False else '']
    with_figure = any(m.startswith('image/') for o in outputs for m in o.get('data', {}))
    if opts.get('output') is not False: res += [output_md(o, opts, i, f'{name}_files/{n}', folder, with_figure) for i,o in enumerate(outputs)]
    return '\n\n'.join(filter(None, res) if opts.get('output') == 'asis' else ['::: {.cell}', *filter(None, res), ':::'])

def make(proc, out):
    "An HTML page in `out` for each notebook of `proc`: a dict from the one's path to the other's"
    front = {p.relative_to(proc).as_posix(): yaml.safe_load(text(cells(p)[0]['source']).strip().strip('-')) for p in notebooks(proc)}
    htmls = {nb: join(dirname(nb), f['output-file']) for nb,f in front.items()}
    shutil.copytree(proc, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns('*.ipynb'))
    filters = yaml.safe_load(read(proc/'_quarto.yml')).get('filters', [])
    for nb,html in htmls.items():
        folder, up = out/dirname(nb), relpath('.', dirname(nb) or '.')
        md = '\n\n'.join(cell_md(c, i, Path(nb).stem, folder) for i,c in enumerate(cells(proc/nb)))
        about = [f'--metadata={k}:{v}' for k,v in (('title', front[nb]['title']), ('subtitle', front[nb].get('description', '')), ('lang', 'en'))]
        page = pandoc(md, 'markdown', 'html5', '--standalone', '--mathml', f'--css={join(up, "styles.css")}', *about, *(f'--lua-filter={proc/o}' for o in filters))
        (out/html).write_text(re.sub(r'href="([^":#]+\.ipynb)', lambda m: f'href="{seen_from(html, htmls, m[1])}', page), encoding='utf-8')
    return htmls

def seen_from(html, htmls, url):
    "The page of the notebook that `html` links to; the notebook where it has no page"
    to = htmls.get(normpath(join(dirname(html), url)))
    return relpath(to, dirname(html) or '.') if to else url


# What can be wrong

class Page(HTMLParser):
    "What matters of a page: `ids`, `links`, `images` as pairs of address and alt text, `raw` markup, what is `wide`, and the `order` of headings, figures and code"
    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.images, self.raw, self.wide, self.order, self.in_code = set(), [], [], [], [], [], 0
        self.feed(html)

    def handle_endtag(self, tag): self.in_code -= tag == 'code'
    def handle_data(self, data):
        if '](' in data and not self.in_code: self.raw.append(data.strip()[-60:])

    def handle_starttag(self, tag, attrs):
        a = {k: v or '' for k,v in attrs}
        self.in_code += tag == 'code'
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        if tag == 'img': self.images.append((a.get('src', ''), a.get('alt', '')))
        if any(float(o) > max_px for o in re.findall(r'(?<![\w-])(?:min-)?width:\s*([\d.]+)px', a.get('style', ''))): self.wide.append(tag)
        if tag in ('h2', 'img') or 'cell-code' in a.get('class', ''): self.order.append('code' if 'cell-code' in a.get('class', '') else tag)

def inside(html, url, site):
    "`(page or file, anchor)` of a link that stays within the site, else None"
    url = url.removeprefix(site.rstrip('/') + '/') if url.startswith(site) else join(dirname(html), url) if not external.match(url) else html + url if url.startswith('#') else None
    if url is None: return
    to, _, anchor = url.partition('#')
    return normpath(to) if to else html, anchor

def link_faults(html, pages, out, site):
    for url in dict.fromkeys(pages[html].links):
        if (to := inside(html, url, site)) is None: continue
        if to[0] not in pages and not (out/to[0]).is_file(): yield f'links to {url}, which is not there'
        elif to[1] and to[0] in pages and to[1] not in pages[to[0]].ids: yield f'links to {url}, but {to[0]} has no such heading'

def figure_faults(html, page, out):
    for src,alt in page.images:
        if not external.match(src) and not (out/dirname(html)/src).is_file(): yield f'shows {src}, which is not there'
        if len(alt.split()) < 3: yield f'{src}: the alt text {alt!r} does not say what is seen (#| fig-alt: in its cell, or ![alt](file))'

def page_faults(html, pages, out, site):
    "What is wrong with a page, a line each"
    page, files = pages[html], [out/html, *(out/dirname(html)/src for src,_ in pages[html].images)]
    yield from link_faults(html, pages, out, site)
    yield from figure_faults(html, page, out)
    yield from (f'{o!r} is markup that shows: a link around a name in backticks, which nbdev links itself?' for o in page.raw)
    yield from (f'a <{o}> is set to more than {max_px} pixels, wider than a page' for o in page.wide)
    mb = sum(o.stat().st_size for o in files if o.is_file())/1e6
    if mb > max_mb: yield f'{mb:.1f} MB with its figures; at most {max_mb}'

def output_faults(proc, nb):
    "Progress bars, which a page shows as one endless line; entries of the reference that say nothing"
    for c in cells(proc/nb):
        if options(text(c['source'])).get('output') is False: continue
        said = text([text(o.get('data', {}).get('text/markdown')) for o in c.get('outputs', [])])
        if 'Call self as a function' in said: yield f"no docstring: {re.findall('^### (.*)', said, flags=re.M)}"
        if any(bar.search(text(o.get('text'))) for o in c.get('outputs', [])): yield f"a progress bar in an output: {text(c['source'])[:60]!r} (#| output: false, or run this with --mend)"
        if any(map(local, c.get('outputs', []))): yield f"a warning with the paths of one machine: {text(c['source'])[:60]!r} (run this with --mend)"
        if any(str(root) in text(o.get('text')) for o in c.get('outputs', [])): yield f"the path of this checkout in an output: {text(c['source'])[:60]!r} (run this with --mend)"

def option_faults(proc, nb):
    "Options that are no YAML, as where an alt text holds a colon and no quotes: Quarto stops there"
    for c in cells(proc/nb):
        try: options(text(c['source']))
        except yaml.YAMLError as e: yield f"the options of a cell are no YAML, {e.problem} (quotes around a text with a colon?): {text(c['source'])[:80]!r}"

def listed(o, folder):
    "Every notebook that a sidebar names, patterns filled in"
    if isinstance(o, list): return [h for x in o for h in listed(x, folder)]
    if isinstance(o, dict): return listed(o.get('href', []), folder) + listed(o.get('contents', []), folder)
    return [p.relative_to(folder).as_posix() for p in folder.glob(o)] if '*' in o else [o]

def sidebar_faults(proc, htmls):
    n = Counter(listed(yaml.safe_load(read(proc/'_quarto.yml'))['website']['sidebar']['contents'], proc))
    yield from (f'{o} is in the sidebar {n[o]} times, not once' for o in htmls if n[o] != 1)
    yield from (f'{o} is in the sidebar, but there is no such page' for o in n if o not in htmls)

def style_faults(css):
    "Code, tables and figures must not push a page wider than the screen"
    rules = re.findall(r'([^{}]+)\{([^{}]*)\}', re.sub(r'/\*.*?\*/', '', css, flags=re.S))
    said = {(sel.split()[-1], ' '.join(o.split())) for sels,body in rules for sel in sels.split(',') for o in body.split(';')}
    yield from (f'styles.css does not say {v} for {k}' for k,v in fits.items() if (k, v) not in said)

def home_faults(page):
    "A figure, then code, before anything else has a second heading"
    before = page.order[:page.order.index('code')] if 'code' in page.order else []
    if 'img' not in before or before.count('h2') > 1: yield 'the home page does not begin with the figure and the ten lines'

def symbol_faults(pages, modidx):
    "Names that a module exports and no page has a heading for; `modidx` is nbdev's table of symbols"
    for mod,syms in modidx.items():
        for name,(doc,_) in syms.items():
            if '.' in (short := name.removeprefix(mod + '.')) or short[0] == '_': continue
            to, _, anchor = doc.partition('#')
            if to not in pages or anchor not in pages[to].ids: yield f'{name} has no place on the site: {doc} is not there'

def site_faults(proc, out, site):
    "Make the pages of `proc` in `out`, and say what is wrong with them"
    if wrong := [f'{nb.relative_to(proc)}: {o}' for nb in notebooks(proc) for o in option_faults(proc, nb)]: return (yield from wrong)
    htmls = make(proc, out)
    pages = {o: Page(read(out/o)) for o in htmls.values()}
    for nb,html in htmls.items(): yield from (f'{nb}: {o}' for o in (*page_faults(html, pages, out, site), *output_faults(proc, nb)))
    yield from sidebar_faults(proc, htmls)
    yield from style_faults(read(proc/'styles.css'))
    if 'index.html' in pages: yield from home_faults(pages['index.html'])

def project_faults(out):
    "The same of this project, with what only it has: an index of symbols and a README"
    proc = process()
    from cactus_nb._modidx import d
    yield from site_faults(proc, out, yaml.safe_load(read(proc/'nbdev.yml'))['website']['site-url'])
    yield from symbol_faults({p.relative_to(out).as_posix(): Page(read(p)) for p in out.rglob('*.html')}, d['syms'])
    if o := readme_fault(): yield o


# Progress bars and heavy pictures

def settled(line):
    "What a terminal shows in the end of a line in which every carriage return starts over, bars left out; None if that is nothing"
    if not bar.search(line): return line
    shown = ''
    for o in line.split('\r'):
        if not re.search(r'█|\|-+\|', o): shown = o + shown[len(o):]
    return shown.rstrip() or None

def local(o): return o.get('name') == 'stderr' and bool(re.search(r'^/\S+\.py:\d+: \w*Warning|site-packages', text(o.get('text')), re.M))  # a warning with the paths of one machine

def lighter(data):
    "A picture, base64 of a PNG, in 256 colours, if it has more and is then smaller by a tenth"
    if (image := Image.open(io.BytesIO(base64.b64decode(data)))).mode == 'P': return data
    image.convert('RGB').quantize(256, dither=Image.Dither.NONE).save(file := io.BytesIO(), 'png', optimize=True)
    return small if len(small := base64.b64encode(file.getvalue()).decode()) < 0.9*len(data) else data

def mend(path):
    "Leave of every output what a terminal shows of it, and of its pictures 256 colours; drop warnings of one machine, and this checkout's paths"
    nb = json.loads(before := read(path))
    for c in nb['cells']:
        barred = [o for o in c.get('outputs', []) if bar.search(text(o.get('text')))]
        for o in barred: o['text'] = '\n'.join(x for x in map(settled, text(o['text']).split('\n')) if x is not None).splitlines(True)
        if barred: c['outputs'] = [o for o in c['outputs'] if o not in barred or text(o['text']).strip()]
        if 'outputs' in c: c['outputs'] = [o for o in c['outputs'] if not local(o)]
        for o in c.get('outputs', []):
            if str(path.parent) in text(o.get('text')): o['text'] = re.sub(r'<ipython-input-[^>]*>', '', text(o['text'])).replace(f'{path.parent}/', '').splitlines(True)
            if 'image/png' in o.get('data', {}): o['data']['image/png'] = lighter(text(o['data']['image/png']))
    after = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'
    if after != before: path.write_text(after, encoding='utf-8', newline='\n')

def main():
    p = argparse.ArgumentParser(description='Is the site in order?')
    p.add_argument('--out', type=Path, help='folder for the pages; else they are thrown away')
    p.add_argument('--mend', action='store_true', help='first leave of the outputs in nbs/ what a terminal shows of them, and of pictures 256 colours')
    args = p.parse_args()
    if args.mend: [mend(o) for o in notebooks(root/'nbs')]
    with tempfile.TemporaryDirectory() as tmp:
        wrong = [*project_faults((args.out or Path(tmp)).resolve())]
    if wrong: raise SystemExit('\n'.join(wrong))
    print('The site is in order')

if __name__ == '__main__': main()

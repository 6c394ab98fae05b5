"The site can be built, and its pages are in order; each check of .ci/check_site.py fails on a page that has the fault."
import base64, io, json, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np, pytest
from PIL import Image

root = Path(__file__).resolve().parent.parent
if any(find_spec(o) is None for o in ('nbdev', 'pypandoc')): pytest.skip('nbdev and pypandoc_binary are not installed', allow_module_level=True)
sys.path.insert(0, str(root/'.ci'))
import check_site

site = 'https://example.org/toy'
png = base64.b64encode(b'\x89PNG\r\n\x1a\n').decode()
style = 'pre, math { overflow-x: auto; }\ntable { display: block; overflow-x: auto; }\nimg { max-width: 100%; }'
sidebar = ['index.ipynb', {'section': 'More', 'contents': 'more/*.ipynb'}]

def md(src): return dict(cell_type='markdown', metadata={}, source=src)
def code(src, *outputs): return dict(cell_type='code', metadata={}, source=src, outputs=list(outputs))
def said(s): return dict(output_type='stream', name='stdout', text=s)
def shown(**data): return dict(output_type='display_data', metadata={}, data={k.replace('_', '/'): v for k,v in data.items()})
def drawn(alt='#| fig-alt: two dots and a line\n', data=png): return code(f'{alt}draw()', shown(image_png=data))
def symbol(doc='*Says what it is for*'): return code('#| output: asis\n#| echo: false\nshow_doc(f)', shown(text_markdown=f'### f\n\n```python\ndef f(\n    x, # As for [`g`]({site}/index.html#g)\n):\n```\n\n{doc}'))
def page(name, *cells): return [dict(cell_type='raw', metadata={}, source=f'---\ntitle: {name}\noutput-file: {name}.html\n---'), *cells]

def build(folder, *more, home=None, css=style, sidebar=sidebar):
    "What is wrong with a site of a home page and a page `deep` with the cells `more`"
    proc, out = folder/'proc', folder/'out'
    (proc/'more').mkdir(parents=True); out.mkdir()
    (proc/'styles.css').write_text(css); (proc/'dot.png').write_bytes(base64.b64decode(png)); (proc/'tidy.lua').write_text((root/'nbs'/'tidy.lua').read_text())
    (proc/'_quarto.yml').write_text(json.dumps(dict(filters=['tidy.lua'], website=dict(sidebar=dict(contents=sidebar)))))
    home = home or [md('![Two dots and a line](dot.png)'), md('## The lines'), code('run()', said('done')), md('## Then')]
    for path,cells in {'index': page('index', *home), 'more/00_deep': page('deep', *more)}.items(): (proc/f'{path}.ipynb').write_text(json.dumps(dict(cells=cells)))
    return [*check_site.site_faults(proc, out, site)]


def test_the_site_is_in_order():
    "Slow only in that every notebook is processed: no notebook is run."
    res = subprocess.run([sys.executable, root/'.ci'/'check_site.py'], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr

def test_nothing_wrong(tmp_path):
    "Links by notebook and by address, anchors, figures of three kinds, signatures, wide things: all as they should be."
    more = [md(f'[home](../index.ipynb), [lines](../index.ipynb#the-lines), [here](#deeper), [`g`]({site}/index.html#then), [`_f`]({site}/index.html#_f), [outside](https://example.com)'),
            md('## Deeper\n\n![A dot, and no more](../dot.png)\n\n`[a](b)`, and $$x^2$$'), drawn(), symbol(), code('#| output: false\nfit()', said('█\r 3%')),
            code('t', shown(text_html='<table style="width: 300px"><tr><td>1 ± 2</td></tr></table>')), md('3 ± 4'), code('x'*300, said('y'*300))]
    assert build(tmp_path, *more) == []
    html = (tmp_path/'out'/'more'/'deep.html').read_text(encoding='utf-8')
    assert 'href="../index.html"' in html and 'href="../index.html#the-lines"' in html and 'src="00_deep_files/' in html
    assert '1&nbsp;±&nbsp;2' in html and '3\u00a0±\u00a04' in html
    assert 'signature' in html and f'{site}/index.html#g' not in html and '#_f"' not in html

@pytest.mark.parametrize('cells,words', [
    ([md('[gone](../away.ipynb)')], 'links to ../away.ipynb, which is not there'),
    ([md('[gone](away.html)')], 'links to away.html, which is not there'),
    ([md('[gone](#nowhere)')], 'links to #nowhere, but more/deep.html has no such heading'),
    ([md('[gone](../index.ipynb#nowhere)')], 'index.html has no such heading'),
    ([md(f'[`g`]({site}/index.html#g)')], f'links to {site}/index.html#g, but index.html has no such heading'),
    ([md(f'[`g`]({site}/away.html#g)')], f'links to {site}/away.html#g, which is not there'),
    ([md(f'[[`g`]({site}/index.html#then)](../index.ipynb)')], 'markup that shows'),
    ([md('![A dot, and no more](away.png)')], 'shows away.png, which is not there'),
    ([md('![](../dot.png)')], "the alt text '' does not say what is seen"),
    ([drawn('')], "the alt text '' does not say what is seen"),
    ([drawn('#| fig-alt: figure\n')], "the alt text 'figure' does not say what is seen"),
    ([drawn(data=base64.b64encode(bytes(2_100_000)).decode())], '2.1 MB with its figures; at most 2'),
    ([md((10*'word' + ' ')*58_600)], '2.4 MB with its figures; at most 2'),
    ([code('t', shown(text_html='<div style="color: red; width: 1200px">x</div>'))], 'a <div> is set to more than 720 pixels'),
    ([code('fit()', said('epoch\n█\r|--------| 3.00% [1/30]\r'))], "a progress bar in an output: 'fit()'"),
    ([code('fit()', said('/home/me/site-packages/x.py: Warning\n') | dict(name='stderr'))], "a warning with the paths of one machine: 'fit()'"),
    ([code('fit()', said('/home/me/cactus_nb/x.py:9: UserWarning\n') | dict(name='stderr'))], "a warning with the paths of one machine: 'fit()'"),
    ([drawn('#| fig-alt: left: a dot\n')], "the options of a cell are no YAML, mapping values are not allowed here"),
    ([symbol('*Call self as a function.*')], "no docstring: ['f']"),
])
def test_faults_of_a_page(tmp_path, cells, words):
    found = build(tmp_path, *cells)
    assert len(found) == 1 and found[0].startswith('more/00_deep.ipynb: ') and words in found[0], found

@pytest.mark.parametrize('what,words', [
    (dict(sidebar=['index.ipynb']), 'more/00_deep.ipynb is in the sidebar 0 times'),
    (dict(sidebar=['more/00_deep.ipynb', *sidebar]), 'more/00_deep.ipynb is in the sidebar 2 times'),
    (dict(sidebar=['away.ipynb', *sidebar]), 'away.ipynb is in the sidebar, but there is no such page'),
    (dict(css=style.replace('table', 'div')), 'styles.css does not say overflow-x: auto for table'),
    (dict(css='/* pre { overflow-x: auto; } */ ' + style.replace('pre, ', '')), 'styles.css does not say overflow-x: auto for pre'),
    (dict(home=[md('## The lines'), code('run()'), md('![Two dots and a line](dot.png)')]), 'the home page does not begin with the figure and the ten lines'),
    (dict(home=[md('![Two dots and a line](dot.png)\n\n## Install\n\n## The lines'), code('run()')]), 'the home page does not begin with the figure and the ten lines'),
])
def test_faults_of_a_site(tmp_path, what, words):
    assert any(words in o for o in build(tmp_path, **what))

def test_symbols():
    "A name that is exported needs a heading of its own; a private one and a method do not."
    pages = {'a.html': check_site.Page('<h3 id="f">f</h3>')}
    syms = {o: (f"a.html#{o.split('.', 1)[1]}", 'a.py') for o in ('m.f', 'm.g', 'm._h', 'm.f.method')}
    assert [*check_site.symbol_faults(pages, dict(m=syms))] == ['m.g has no place on the site: a.html#g is not there']

def test_mend(tmp_path):
    "A progress bar leaves the lines that a terminal would show, a warning with paths of others goes, and of the notebook's own folder the path; other outputs stay as they are."
    path = tmp_path/'a.ipynb'
    bars = '█\repoch  loss\n█\r|-----| 0.00% [0/3]\r|██---| 40% [1/3]\rEpoch 1/1 :      \r\r0      1.5  \n|█████| 100%\r\ndone\n'
    path.write_text(json.dumps(dict(cells=[code('fit()', said(bars), said('|█---| 5%\r'), said('plain  \n'), said('/home/me/site-packages/x.py: Warning\n') | dict(name='stderr'), said(f'<ipython-input-1-7a>:1: UserWarning: {tmp_path}/photos holds 2 copies\n'))])))
    check_site.mend(path)
    assert [o['text'] for o in check_site.cells(path)[0]['outputs']] == [['epoch  loss\n', '0      1.5\n', 'done\n'], 'plain  \n', [':1: UserWarning: photos holds 2 copies\n']]

def test_mend_pictures(tmp_path):
    "A picture of many colours becomes smaller and looks the same; one of few is left alone, and mending twice changes nothing."
    def png(a): Image.fromarray(a).save(file := io.BytesIO(), 'png'); return base64.b64encode(file.getvalue()).decode()
    many = np.random.default_rng(0).integers(0, 8, (128, 128, 3)).astype(np.uint8)*36 # 512 colours
    few  = np.zeros((64, 64, 3), np.uint8)
    small = check_site.lighter(png(many))
    assert len(small) < len(png(many)) and check_site.lighter(png(few)) == png(few)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(small))).convert('RGB')).astype(int)
    assert np.abs(shown - many).max() <= 40
    path = tmp_path/'a.ipynb'
    path.write_text(json.dumps(dict(cells=[code('show()', dict(output_type='display_data', data={'image/png': png(many)}))])))
    check_site.mend(path); once = path.read_text(); check_site.mend(path)
    assert check_site.cells(path)[0]['outputs'][0]['data']['image/png'] == small and path.read_text() == once

"The widgets as a visitor meets them, in JupyterLab and in Notebook 7: all cells are run, controls are moved, files uploaded, the kernel interrupted."
import io, json, re, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image

root = Path(__file__).resolve().parents[2]
apps = pytest.mark.parametrize('app', ['lab/tree', 'notebooks'])

def png(image, scale=4):
    f = io.BytesIO(); Image.fromarray(image).resize([scale*o for o in image.shape[::-1]]).save(f, 'png'); return f.getvalue()
def file(name, data, kind='image/png'): return dict(name=name, mimeType=kind, buffer=data)

class Visit:
    "A notebook in a browser, all of its cells run"
    def __init__(self, page, jupyter, nb, name, app):
        (url, work, token), self.page = jupyter, page
        self.path = work/f'{app.split("/")[0]}_{name}.ipynb'
        for c in nb['cells']: c['outputs'] = [] if c['cell_type'] == 'code' else c.pop('outputs', None)
        nb['cells'] = [{k: v for k,v in c.items() if v is not None or k == 'execution_count'} for c in nb['cells']]
        self.path.write_text(json.dumps(nb))
        page.goto(f'{url}/{app}/{self.path.name}?token={token}&reset')
        page.wait_for_selector('.jp-CodeCell')
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', state='attached')
        self.run_all()
        self.errors = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], .jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()

    def run_all(self, limit=600):
        "Run > Run All Cells; where Jupyter asks for a kernel, in its own time, it gets an answer, and cells that it forgot over this are run again"
        start, asked = time.time(), self.page.locator('dialog.jp-Dialog')
        while not all(map(re.compile(r'\d').search, prompts := self.prompts())):
            assert time.time() - start < limit, prompts
            if asked.count(): asked.locator('button.jp-mod-accept').click()
            elif not any('*' in o for o in prompts):
                try: self.menu('Run', 'Run All Cells', timeout=5000)
                except Exception as e:
                    if 'intercepts pointer events' not in str(e): raise
            self.page.wait_for_timeout(3000)

    def prompts(self): return self.page.locator('.jp-CodeCell .jp-InputArea-prompt').all_inner_texts()
    def menu(self, *path, timeout=60_000):
        for kind,text in zip(('MenuBar', 'Menu'), path): self.page.locator(f'.lm-{kind}-item', has_text=re.compile(f'^{text}')).first.click(timeout=timeout)

    def panel(self, words, i=0): return Seen(self.page, self.page.locator('.widget-vbox', has=self.page.locator('.cactus-about', has_text=words)).nth(i))

class Seen:
    "A widget on the page"
    def __init__(self, page, box): self.page, self.box, self.took = page, box, []
    def src(self): return self.box.locator('img').get_attribute('src')
    def said(self): return ' '.join(self.box.locator('.cactus-said').all_inner_texts())
    def pale(self): return 'cactus-pale' in (self.box.locator('img').get_attribute('class') or '')
    def knob(self, label): return self.box.locator('.widget-inline-hbox', has=self.page.locator('.widget-label', has_text=re.compile(f'^{re.escape(label)}$')))
    def size(self): return self.box.locator('img').evaluate('o => [o.naturalWidth, o.naturalHeight]')

    def changes(self, what, wait=60):
        "Do something and wait for another picture; `took` has the seconds"
        before, start = self.src(), time.time()
        what()
        while self.src() == before:
            assert time.time() - start < wait, f'no new picture in {wait} s: {self.said()}'
            self.page.wait_for_timeout(15)
        self.took.append(time.time() - start)

    def says(self, words, wait=60):
        start = time.time()
        while words not in self.said(): assert time.time() - start < wait, f'{words!r} was not said, but {self.said()!r}'; self.page.wait_for_timeout(30)

    def press(self, text): self.box.get_by_role('button', name=text, exact=True).click()
    def choose(self, label, value): self.knob(label).locator('select').select_option(label=value)
    def slide(self, label, value):
        o = self.knob(label).locator('.widget-readout')
        o.click(); self.page.keyboard.press('Control+A'); self.page.keyboard.type(str(value)); self.page.keyboard.press('Enter')
    def shows(self, label): return self.knob(label).locator('.widget-readout').inner_text()
    def upload(self, text, *files):
        with self.page.expect_file_chooser() as f: self.box.get_by_role('button', name=text).click()
        f.value.set_files(list(files))
    def shot(self, path):
        self.box.scroll_into_view_if_needed(); self.page.wait_for_timeout(300); self.box.screenshot(path=path)

def tutorial(): return json.loads((root/'nbs'/'tutorials'/'08_play.ipynb').read_text(encoding='utf-8'))
def code(*srcs): return dict(cells=[dict(cell_type='code', id=f'c{i}', metadata={}, source=s, execution_count=None) for i,s in enumerate(srcs)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)


@apps
def test_tutorial(page, jupyter, shots, app):
    "Top to bottom, then each widget is played with."
    visit, name = Visit(page, jupyter, tutorial(), 'play', app), app.split('/')[0]
    assert not [o for o in visit.errors if 'Error' in o], visit.errors
    assert page.locator('.cactus-about').count() == 4
    page.screenshot(path=shots/f'{name}_page.png')

    e = visit.panel('Where do tasks come from')
    e.shot(shots/f'{name}_explorer.png')
    e.changes(lambda: e.press('next task'))
    e.changes(lambda: e.choose('encoder', 'PCA, 2 numbers'))
    small = e.size()
    e.changes(lambda: e.slide('way', 9)); assert e.size()[1] > small[1] and e.shows('way') == '9'
    e.changes(lambda: e.slide('partitions, P', 1))
    e.changes(lambda: e.slide('way', 5)); assert e.size() == small
    e.changes(lambda: e.choose('encoder', 'what ProtoNets learnt')); assert not e.said() and not e.pale()
    e.shot(shots/f'{name}_explorer_learnt.png')

    s = visit.panel('What does an inner step do')
    for _ in range(5): s.changes(lambda: s.press('step ▶'))
    assert s.shows('step') == '5'
    s.shot(shots/f'{name}_steps.png')
    s.changes(lambda: s.slide('step', 20)); s.changes(lambda: s.press('◀ step')); assert s.shows('step') == '19'
    s.changes(lambda: s.slide('query', 7)); s.changes(lambda: s.press('next task')); assert s.shows('step') == '0'

    t = visit.panel('Teach it new classes')
    t.shot(shots/f'{name}_teach.png')
    t.changes(lambda: t.press('ask about new ones'))
    t.changes(lambda: t.press('start again')); assert not t.said()
    t.shot(shots/f'{name}_teach_empty.png')
    t.press('ask about new ones'); t.says('nothing to ask about')
    draw = lambda f: np.uint8(255*f(*np.mgrid[-1:1:28j, -1:1:28j]))
    rings, bars = [[file(f'{k}{i}.png', png(draw(f(0.5 + i/20)))) for i in range(4)] for k,f in (('ring', lambda r: lambda y, x: abs(np.hypot(x, y) - r) < 0.12), ('bar', lambda r: lambda y, x: (abs(x - r + 0.6) < 0.12) & (abs(y) < 0.8)))]
    names = t.box.locator('input[type=text]')
    for k,files in (('rings', rings), ('bars', bars)):
        names.fill(k); names.press('Enter')
        t.changes(lambda: t.upload('its examples', *files[:2]))
    t.changes(lambda: t.upload('new images', rings[2], bars[2], rings[3], bars[3])); assert not t.said()
    t.shot(shots/f'{name}_teach_own.png')
    t.changes(lambda: t.upload('its examples', bars[3], file('notes.txt', b'no image', 'text/plain'), file('huge.png', png(np.zeros((700, 700), np.uint8), 10))))
    t.says('2 of 3 examples of'); assert 'notes.txt: not an image' in t.said() and 'huge.png: more than 40 million pixels' in t.said()
    t.shot(shots/f'{name}_teach_bad.png')
    t.changes(lambda: t.press('pick any')); assert not t.said()

    c = visit.panel('Which embedding is better')
    c.shot(shots/f'{name}_compare.png')
    c.changes(lambda: c.choose('a', 'what ProtoNets learnt')); c.changes(lambda: c.slide('shot', 5))
    c.changes(lambda: c.choose('rule', 'nearest class mean')); c.changes(lambda: c.press('other tasks'))
    c.shot(shots/f'{name}_compare_learnt.png')
    took = {k: np.array(o.took) for k,o in dict(explorer=e, steps=s, teach=t, compare=c).items()}
    print('\nseconds from control to picture in the browser, median and slowest:', {k: (round(float(np.median(v)), 2), round(v.max(), 2)) for k,v in took.items()})

    page.keyboard.press('Escape'); page.keyboard.press('Control+s'); page.wait_for_timeout(3000)
    saved = json.loads(visit.path.read_text())
    assert 'widgets' not in saved['metadata'] and sum('image/png' in o.get('data', {}) for x in saved['cells'] for o in x.get('outputs', [])) == 6


mishaps = '''import time
from cactus_nb.all import *
images = glyphs(); images = images[np.where(images.y < 60)[0][::2]]
encoders = {'one': PCA(8).fit(images), 'two': PCA(2).fit(images)}
class Slow(Panel):
    about = '<b>A slow one.</b> It waits as many tenths of a second as you say.'
    def figure(self, n):
        for _ in self.progress(range(n), 'waiting'): time.sleep(0.1)
        return show_answers(images.x[:1], [[n/100, 1-n/100]], images.x[:2], 'ab').figure'''

@apps
def test_mishaps(page, jupyter, shots, app):
    "Two of a kind, a way too large, no learner, an interrupt in the middle, and a file too large for the server: everything goes on."
    visit, name = Visit(page, jupyter, code(mishaps, *2*['TaskExplorer(images, encoders, n_clusters=(10,))'], 'teach = TeachIt(None, images); teach.pick(); teach.pick(); teach', 'Slow(n=(range(101), 1))'), 'mishaps', app), app.split('/')[0]
    assert not visit.errors

    one, two = [visit.panel('Where do tasks come from', i) for i in (0, 1)]
    before = two.src()
    one.slide('way', 20); one.says('n_way=20 needs 20 clusters'); assert one.pale() and one.shows('way') == '20'
    one.shot(shots/f'{name}_refused.png')
    assert (two.src(), two.said(), two.pale(), two.shows('way')) == (before, '', False, '5')
    one.changes(lambda: one.slide('way', 4)); assert not one.said() and not one.pale()
    two.changes(lambda: two.press('next task')); assert one.shows('way') == '4'

    t = visit.panel('Teach it new classes')
    t.press('ask about new ones'); t.says('There is no trained learner yet'); t.shot(shots/f'{name}_no_learner.png')

    s = visit.panel('A slow one')
    s.slide('n', 100)
    page.wait_for_function("[...document.querySelectorAll('.widget-hprogress')].some(o => o.offsetParent && o.querySelector('.progress-bar').offsetWidth > 20)")
    s.shot(shots/f'{name}_progress.png')
    visit.menu('Kernel', 'Interrupt Kernel')
    s.says('Interrupted. Change any control', 20); assert s.pale()
    s.changes(lambda: s.slide('n', 2)); assert not s.said() and not s.pale() and not s.box.locator('.widget-hprogress').is_visible()
    one.changes(lambda: one.press('next task'))

    t.upload('its examples', file('far too large.png', bytes(14*2**20)))
    page.wait_for_timeout(8000)
    print('\na file of 14 MB:', t.said() or 'nothing was said')
    one.changes(lambda: one.press('next task')); t.press('pick'); t.changes(lambda: t.press('start again')); assert not t.said()

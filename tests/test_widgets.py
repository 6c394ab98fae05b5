"Widgets without a browser: what they compute, what is refused, many changes in a row. In a browser: tests/browser."
import gc, io, subprocess, sys, weakref

import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from PIL import Image
from cactus_nb.backbones import conv4, conv4_classifier
from cactus_nb.data.sets import glyphs
from cactus_nb.encoders.core import PCA, OwnEmbedding
from cactus_nb.meta.learner import maml_learner, proto_learner, save_run
from cactus_nb.score.baselines import knn
from cactus_nb.score.evaluate import PairedDifference, evaluate
from cactus_nb.show import widgets
from cactus_nb.show.widgets import CompareEmbeddings, InnerSteps, Panel, TaskExplorer, TeachIt, _figure
from cactus_nb.tasks.partition import random_partitions
from cactus_nb.tasks.sample import task_dls

def letters(n=60): g = glyphs(); return g[np.where(g.y < n)[0][::2]]
images = letters()
encoders = dict(pca=PCA(8).fit(images), own=np.random.default_rng(0).normal(size=(len(images), 4)).astype(np.float32))
parts = random_partitions(len(images), 10, 1, n_way=5)
dls = task_dls(images.unlabelled(), parts, n_way=5, k_shot=1, n_query=5, n_tasks=2, n_valid=2)
protonets, maml = proto_learner(dls, conv4(n_filters=4, seed=0)), maml_learner(dls, conv4_classifier(5, n_filters=4, seed=0))

def explorer(): return TaskExplorer(images, encoders, n_clusters=(10, 30))
def inner(): return InnerSteps(maml, images, n_steps=6)
def compare(): return CompareEmbeddings(images, encoders)
def teach(learn=protonets): t = TeachIt(learn, images); t.pick(); t.pick(); return t
kinds = [explorer, inner, compare, teach]

def png(mode='L', size=(40, 30)): f = io.BytesIO(); Image.new(mode, size, 9).save(f, 'tiff' if mode in ('CMYK', 'I;16', 'F') else 'png'); return f.getvalue()
def upload(name, data): return dict(name=name, type='', size=len(data), content=memoryview(data), last_modified=None)

def press(panel, rng):
    "Change one control or press one button, drawn by lot, as the front end does where there are controls"
    buttons = {**panel.buttons, **(dict(a='pick', b='quiz', c='start_again') if isinstance(panel, TeachIt) else {})}
    todo = rng.choice([*panel.controls, *buttons.values()])
    if todo not in panel.controls: return panel.act(getattr(panel, todo))
    value = (c := [*panel.controls[todo][0]])[rng.integers(len(c))]
    if panel.box: panel.knobs[todo].value = value
    else: panel.act(**{todo: value})


def check(panel):
    "What holds after every change: a mistake is said, is none of ours, and the controls stand where they were put"
    assert (panel.said or not panel.pale) and not panel.said.split(':')[0].endswith('Error'), panel.said
    assert {k: o.value for k,o in panel.knobs.items()} == {k: panel.settings[k] for k in panel.knobs}

def settle(panel, make):
    "From a mistake back to something that can be drawn; the picture is then that of the controls"
    if panel.pale: panel.act(None if panel.controls else panel.start_again, **{k: v for k,v in make().settings.items() if k in panel.controls})
    assert panel.picture.value == panel.png == panel.static().data and not panel.picture._dom_classes

@pytest.mark.once
@pytest.mark.parametrize('make', kinds)
def test_many_changes(make, monkeypatch):
    "50 for each of the four, 200 together: no exception, no figure that stays, and the picture is that of the controls; measure.py in tests/browser does 200 for each."
    panel, rng, figures, fig, png_of = make(), np.random.default_rng(0), weakref.WeakSet(), widgets._figure, widgets._png
    monkeypatch.setattr(widgets, '_figure', lambda *size: figures.add(f := fig(*size)) or f)
    panel.widget()
    for i in range(50):
        monkeypatch.setattr(widgets, '_png', png_of if i%10 == 9 else lambda fig: b'') # drawing the rest is left to measure.py
        press(panel, rng); check(panel)
    drawn = len(figures); gc.collect()
    assert drawn and not len(figures) and not plt.get_fignums()
    settle(panel, make)

@pytest.mark.once
@pytest.mark.parametrize('make', kinds)
def test_two_of_a_kind(make):
    "A change of one is none of the other's, nor are the controls."
    a, b = make(), make()
    box, before = a.widget(), (b.widget() and None, dict(b.settings), b.png)
    assert box is a.widget() and box is not b.widget()
    rng = np.random.default_rng(1)
    for _ in range(5): press(a, rng)
    assert (None, b.settings, b.png) == before and not {*map(id, a.box.children)} & {*map(id, b.box.children)}

@pytest.mark.once
@pytest.mark.parametrize('make', kinds)
def test_interrupted(make):
    "Interrupted while it computes: that is said, nothing half done is kept, and the next change is as if nothing had been."
    panel, ref = make(), make()
    panel.widget()
    def stopped(it, what): raise KeyboardInterrupt
    track, panel.progress, panel.made = panel.progress, stopped, {}
    files = [upload('a.png', png())]
    panel.act(*([lambda: panel.ask(files)] if make is teach else []))
    assert panel.said.startswith('Interrupted') and panel.pale and not panel.made
    panel.progress = track
    panel.act()
    ref.act()
    assert not panel.said and panel.png == ref.png and panel.bar.layout.display == 'none'

def test_explains_itself():
    for make in kinds: assert len(make().about.split('</b>')[1].split()) > 8

@pytest.mark.once
def test_static_needs_no_ipywidgets():
    "Neither importing the library, nor a picture without controls, needs ipywidgets."
    src = "import sys; sys.modules['ipywidgets'] = None\nimport numpy as np\nfrom cactus_nb.all import *\nx = np.random.default_rng(0).integers(0, 256, (60,1,8,8), dtype=np.uint8)\n" \
          "t = TaskExplorer(ImageSet(x), dict(z=x.reshape(60, -1)/255.), n_clusters=(4,))\nt.act(n_way=2)\nassert t.static().data[1:4] == b'PNG' and 'image/png' in t._repr_mimebundle_()"
    res = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr

def test_way_over_the_classes():
    e = explorer(); e.act(n_clusters=10, n_way=12)
    assert 'n_way=12 needs 12 clusters' in e.said and e.pale
    e.act(n_way=5); assert not e.said
    c = CompareEmbeddings(letters(6), dict(a=PCA(4).fit(images), b=PCA(2).fit(images))); c.act(n_way=7)
    assert 'n_way=7 needs 7 classes' in c.said
    with pytest.raises(ValueError, match='n_way=61 needs 61 classes'): InnerSteps(maml, images, n_way=61)

def test_tasks_are_those_of_the_library():
    c = compare(); ra, rb = c.results(**c.settings)
    assert np.array_equal(ra.per_task, evaluate(knn(encoders['pca']), images, n_tasks=200).per_task)
    assert np.array_equal(rb.per_task, evaluate(knn(OwnEmbedding(encoders['own'], images)), images, n_tasks=200).per_task)

def test_colours_of_a_difference():
    "A colour stands for the same embedding, also where it is better on no task."
    diff = PairedDifference(np.array([4.,8,0,4]), 5, 1, 5, 0, '')
    colours = lambda d: [h.patches[0].get_facecolor() for h in widgets.show_difference(d, 'xy').get_legend_handles_labels()[0]]
    assert len({*colours(diff)}) == 3 and colours(diff) == colours(PairedDifference(-diff.per_task, 5, 1, 5, 0, ''))
    plt.close('all')

def test_weights_stay():
    "Stepping through the inner loop leaves the network, and its mode, as they were."
    net, before = maml.model, {k: v.clone() for k,v in maml.model.state_dict().items()}
    net.train(); i = inner(); i.act(step=4, inner_lr=0.2)
    assert net.training and all(torch.equal(v, before[k]) for k,v in net.state_dict().items()) and not any(p.grad is not None for p in net.parameters())

@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'RGB', 'RGBA', 'CMYK', 'I;16', 'F'])
def test_upload_of_any_mode(mode):
    t = teach(); t.teach('mine', [upload('a', png(mode, (57, 31)))])
    assert t.examples['mine'].shape == (1,1,28,28)

bad_uploads = dict(empty=(b'', 'a.png: not an image'), pdf=(b'%PDF-1.4', 'a.png: not an image'), cut=(png()[:60], 'a.png: '), pixels=(png(size=(7000, 6000)), 'more than 40 million pixels'), bytes=(bytes(11*2**20), '11 MB, at most 10'))

@pytest.mark.parametrize('data,words', bad_uploads.values(), ids=bad_uploads)
def test_bad_upload(data, words):
    "It is named, the good one beside it is taken, and the widget goes on."
    t = teach(); t.widget(); before = [*t.examples]
    t.act(lambda: t.teach('mine', [upload('a.png', data), upload('b.png', png())]))
    assert '1 of 2' in t.said and words in t.said and 'the others were taken' in t.said and len(t.examples['mine']) == 1
    t.act(lambda: t.teach('yours', [upload('a.png', data)])); assert words in t.said and 'yours' not in t.examples
    t.act(t.quiz); assert not t.said and [*t.examples] == [*before, 'mine']

def test_what_is_missing():
    t = TeachIt(protonets, images); t.act(); assert not t.said
    for todo,words in ((t.quiz, 'nothing to ask about'), (lambda: t.teach('', [upload('a', png())]), 'have no name yet'), (lambda: t.teach('a', []), "no examples of 'a'"), (lambda: t.ask([]), 'no new images')):
        t.act(todo); assert words in t.said
    t.act(t.pick)
    with pytest.raises(ValueError, match='One class has examples so far'): t.answer()
    t.act(lambda: t.forget('no such class')); assert not t.said
    u = TeachIt(protonets); u.act(u.pick); assert 'no images at hand' in u.said
    with pytest.raises(ValueError, match='give labelled images'): TeachIt(protonets, images.unlabelled())

def test_no_learner_yet(tmp_path):
    t = teach(None); t.act(t.quiz); assert 'There is no trained learner yet' in t.said
    t.learn = tmp_path/'run'; t.act(); assert 'There is no folder' in t.said
    t.learn = 3; t.act(); assert 'not a Learner' in t.said
    save_run(protonets, tmp_path/'run'); t.learn = tmp_path/'run'; t.act(); assert not t.said and not t.pale
    for bad in (None, protonets):
        with pytest.raises(ValueError): InnerSteps(bad, images)

def test_text_is_no_markup():
    "What a file or a class is called is shown, not run."
    t = teach(); t.widget(); t.act(lambda: t.teach('<img src=x>', [upload('<script>', b'')]))
    assert '&lt;script&gt;' in t.message.value and '<script' not in t.message.value

def test_a_fault_of_ours_is_said_too():
    class Broken(Panel):
        def figure(self, n): return _figure(1, 1) if n else {}['n']
    b = Broken(n=(range(2), 1)); b.widget(); b.knobs['n'].value = 0
    assert b.said == "KeyError: 'n'" and b.pale
    b.knobs['n'].value = 1; assert not b.said and not b.pale

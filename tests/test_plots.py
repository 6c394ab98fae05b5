"Pictures of little and of much: one class, one task, accuracies that are no numbers, 500 classes. Nothing sticks out, and what is left out is said."
import json, sys
from pathlib import Path

import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from matplotlib.colors import to_rgb
from cactus_nb.data.core import ImageSet
from cactus_nb.encoders.core import OwnEmbedding
from cactus_nb.meta.protonet import proto_logits
from cactus_nb.score.baselines import knn
from cactus_nb.score.evaluate import FewShotResult, evaluate, evaluate_grid, result_row
from cactus_nb.show import plot
from cactus_nb.show.plot import *
from cactus_nb.tasks.partition import Partitions, label_partition

rng, page = np.random.default_rng(0), Path(__file__).parent.parent/'nbs'/'50_show.plot.ipynb'
def some(n_classes, each=8, c=1, size=12): return ImageSet(rng.integers(0, 256, (n_classes*each,c,size,size), dtype=np.uint8), np.repeat(np.arange(n_classes), each), [f'a/class number {i}' for i in range(n_classes)])
one, few, many = some(1), some(10), some(500)
def z(images): return np.float32(images.y[:,None] == np.arange(3)) + rng.normal(size=(len(images), 3)).astype(np.float32)
def pixels(xs, ys, xq): return proto_logits(xs.flatten(2), ys, xq.flatten(2), int(ys.max())+1)
def result(acc, **kwargs): return FewShotResult(np.array(acc, float), 5, 1, 5, 0, 'toy', **kwargs)
nan = float('nan')

@pytest.fixture(autouse=True)
def closed(): yield; plt.close('all')

def title(o):
    "Draw the figure, find all that is in it inside it and every text large enough, and return the title of its first axes"
    ax = np.ravel(o)[0]; fig = ax.figure; fig.canvas.draw()
    drawn, (w, h) = fig.get_tightbbox(), fig.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.03 and drawn.x1 < w+0.03 and drawn.y1 < h+0.03, (drawn, w, h)
    assert not [t for t in fig.findobj(plt.Text) if t.get_fontsize() < 5]
    return ax.get_title(loc='left')


def test_one_class():
    parts = label_partition(one)
    assert title(show_clusters(one, parts, z(one), n_images=4, y=one.y)).startswith('1 of 1 clusters')
    assert title(show_sizes(parts)) == 'The one cluster of partition 0: 8 images'
    for by in (parts, one, one.y, None): assert title(show_map(z(one), by, images=one)).startswith('PCA of 8 embeddings')
    for f in (show_tasks, show_confusion):
        with pytest.raises(ValueError, match='n_way=5 needs 5 classes'): f(pixels, one)
        with pytest.raises(ValueError, match='n_way=1: give a whole number of at least 2'): f(pixels, one, n_way=1)

def test_one_task():
    assert '% right' in title(show_tasks(pixels, few, n_tasks=1))
    assert '1 tasks' in title(show_confusion(pixels, few, n_tasks=1))
    r = result([80], per_step=np.array([[20.], [80]]), steps=[0, 1])
    assert title(show_steps({'one': r})) == 'Accuracy on tasks of new classes after each step' # no interval
    assert show_grid({(5,1): r}).texts[0].get_text() == '80.0'
    assert show_results([result_row(r, 'knn')]).texts[-1].get_text() == '80.0'

def test_nan():
    bad, good = result([nan, nan], per_step=np.array([[20., 40], [nan, nan]]), steps=[0, 1]), result([80, 90])
    ax = show_results([result_row(bad, 'knn'), result_row(good, 'linear')])
    assert title(ax) == '\nleft out: 1 row(s) without a figure' and len(ax.patches) == 1
    assert title(show_results([result_row(bad, 'knn')])) == '\nleft out: 1 row(s) without a figure'
    ax = show_grid({(5,1): good, (5,5): bad}); title(ax)
    assert [t.get_text()[:4] for t in ax.texts] == ['85.0', '–']
    assert title(show_steps({'knn': bad})).endswith('left out: 1 values that are not finite')
    t = pd.DataFrame(dict(epoch=[0, 1], valid_loss=[nan, nan], pseudo_accuracy=[.2, nan], ci95=[.1, nan], time=['00:01']*2))
    assert title(show_curves(t)) == 'valid loss\nleft out: 2 values that are not finite'
    with pytest.raises(ValueError, match='NaN or infinity'): show_map(np.full((8, 3), nan))
    for f in (show_tasks, show_confusion):
        with pytest.raises(ValueError, match='gave NaN on task 0'): f(lambda xs, ys, xq: pixels(xs, ys, xq)*nan, few)

def test_500_classes():
    parts = label_partition(many)
    assert title(show_clusters(many, parts, z(many))).startswith('8 of 500 clusters')
    assert title(show_sizes(parts)) == 'Sizes of the 500 clusters of partition 0: 8 to 8 images, median 8'
    ax = show_map(z(many), many)
    assert title(ax) == 'PCA of 2,000 of 4,000 embeddings, 7 of 500 classes in colour, these whole' and len(ax.get_legend().get_texts()) == 8
    assert title(show_confusion(pixels, many, n_tasks=20)).endswith('left out: 486 of 500 classes, less mixed up')
    assert title(show_tasks(pixels, many, n_tasks=1, n_way=500)).endswith('left out: 480 of 500 classes')
    assert title(show_grid(evaluate_grid(pixels, many, n_ways=(2,500), k_shots=1, n_query=2, n_tasks=2))).endswith('2 tasks each')


@pytest.mark.parametrize('c,size', [(1,28), (3,84), (4,12)])
def test_shapes(c, size):
    "Grey, coloured, with a transparency, small and large; with ids"
    images = some(6, c=c, size=size)
    title(show_clusters(images, label_partition(images), z(images), n_clusters=3, n_images=3, y=images.y))
    title(show_tasks(pixels, images, n_tasks=2, k_shot=2, sources=True)); title(show_tasks(pixels, images, n_way=2, n_query=1)); title(show_confusion(pixels, images, n_tasks=9)); title(show_map(z(images), images, images=images))

def test_many_images():
    "Cut in the picture, counted in the title, right over all"
    images = some(6, each=40)
    said = title(show_tasks(pixels, images, n_tasks=1, k_shot=15, n_query=20))
    assert said.endswith('left out: 5 of 15 support images; 10 of 20 queries a class')
    assert f'{evaluate(pixels, images, k_shot=15, n_query=20, n_tasks=2).per_task[0]:.0f}% right' in said
    for n in (1, 2, 3): assert len(show_clusters(images, label_partition(images), z(images), n_images=n).texts) == 6

@pytest.mark.parametrize('method', ['pca', 'tsne'])
@pytest.mark.parametrize('n,d', [(2,3), (3,1), (60,1), (60,5)])
def test_maps(method, n, d):
    xy = show_map(rng.normal(size=(n, d)), method=method).collections[0].get_offsets()
    assert xy.shape == (n, 2) and np.isfinite(xy).all()

def test_map_draws_all_of_the_chosen():
    "A thousand points of 4,000: every image of a coloured class is there, and most classes keep all they had of the rest."
    ax = show_map(z(many), many, n_points=1000)
    assert [len(o.get_offsets()) for o in ax.collections] == [1000 - 7*8] + [8]*7
    half = show_map(z(many), np.arange(4000) % 2, n_points=1000) # two classes are all there is
    assert sum(len(o.get_offsets()) for o in half.collections) == 1000

def test_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, 'umap', None)
    with pytest.raises(ImportError, match='needs umap-learn, which is not installed'): show_map(z(few), method='umap')

def test_refused():
    parts = label_partition(few)
    none = Partitions(np.full((1, 80), -1))
    for f in (lambda: show_clusters(few, none), lambda: show_sizes(none), lambda: show_map(z(few), none)):
        with pytest.raises(ValueError, match='Partition 0 has no cluster to show'): f()
    for f in (lambda: show_sizes(parts, p=1), lambda: show_map(z(few), parts, p=-1)):
        with pytest.raises(ValueError, match='numbered from 0'): f()
    for f in (lambda: show_clusters(one, parts), lambda: show_clusters(few, parts, z(one)), lambda: show_clusters(few, parts, y=one.y), lambda: show_tasks(None, one, parts)):
        with pytest.raises(ValueError, match='give those that belong together'): f()
    for kw, words in [(dict(method='mds'), 'choose one of'), (dict(n_colours=8), 'more than 7'), (dict(by=one), 'for 80 rows of z'), (dict(by=z(few)[:,0]), 'a whole number for each'), (dict(by=few.unlabelled()), 'give labelled images'), (dict(images=one), '8 images')]:
        with pytest.raises(ValueError, match=words): show_map(z(few), **kw)
    with pytest.raises(ValueError, match='1 point'): show_map(z(few)[:1])
    with pytest.raises(ValueError, match='n_clusters=0'): show_clusters(few, parts, n_clusters=0)

def test_confusion():
    "Known answers: class 1 is always taken for class 0 where both are there."
    told = ImageSet(np.broadcast_to(few.y[:,None,None,None].astype(np.uint8), (80,1,2,2)), few.y)
    def method(xs, ys, xq):
        v = lambda x: (255*x[:,:,0,0,0]).round()
        s, q = v(xs), v(xq)
        q = torch.where((q == 1) & (s == 0).any(1, keepdim=True), 0, q)
        return -(q[:,:,None] - s[:,None]).abs()
    taken, met = confusion(method, told, n_tasks=200)
    assert taken[1,0] == met[1,0] > 0 and (taken.sum(1) == met.diagonal()).all()
    off = taken - np.diag(taken.diagonal()); off[1,0] = 0
    assert not off.any()
    ax = show_confusion(method, told, n_classes=3, n_tasks=200)
    assert [*map(lambda t: t.get_text(), ax.get_yticklabels())][:2] == ['0', '1']

def test_own_embedding():
    "Only images of the tasks are embedded, and found by their ids."
    axs = show_tasks(knn(OwnEmbedding(np.eye(10, dtype=np.float32)[few.y], few)), few)
    assert all('100% right' in ax.get_title(loc='left') for ax in axs)


def test_colours():
    "Two colours that mean different things stay apart for protanopes and deuteranopes (Machado et al. 2009), in CIELAB."
    see = {'protan': [[.152286,1.052583,-.204868], [.114503,.786281,.099216], [-.003882,-.048116,1.051998]], 'deutan': [[.367322,.860646,-.227968], [.280085,.672501,.047413], [-.011820,.042940,.968881]], 'all': np.eye(3)}
    def lab(rgb):
        xyz = np.array([[.4124,.3576,.1805], [.2126,.7152,.0722], [.0193,.1192,.9505]]) @ rgb / np.array([.9505,1,1.089])
        f = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz + 16/116)
        return np.array([116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])])
    linear = lambda c: np.array([v/12.92 if v <= .04045 else ((v+.055)/1.055)**2.4 for v in to_rgb(c)])
    for kind, m in see.items():
        labs = [lab(np.clip(np.array(m) @ linear(c), 0, 1)) for c in plot._palette]
        apart = [np.linalg.norm(a-b) for i,a in enumerate(labs) for b in labs[:i]]
        assert min(apart) > 15, (kind, min(apart)) # 2 is just noticeable
    assert [to_rgb(plot._ours), to_rgb(plot._palette[5])] == [tuple(np.array(c)/255) for c in (plot._right, plot._wrong)]

def test_alt_text():
    "Every picture of the page says in words what is on it."
    cells = [c for c in json.loads(page.read_text())['cells'] if any('image/png' in o.get('data', {}) for o in c.get('outputs', []))]
    assert len(cells) > 12 and not [c['source'] for c in cells if not c['source'][0].startswith('#| fig-alt: ')]


@pytest.mark.parametrize('method', ['protonets', 'maml'])
def test_fastais_show_results(method):
    "`learn.show_results()`, as everywhere in fastai, for both methods"
    from cactus_nb.backbones import conv4, conv4_classifier
    from cactus_nb.meta.learner import maml_learner, proto_learner
    from cactus_nb.tasks.sample import task_dls
    images = some(10, size=28)
    dls = task_dls(images, label_partition(images), images, n_way=3, k_shot=1, n_query=2, bs=2, n_tasks=2, n_valid=2)
    learn = proto_learner(dls, conv4(n_filters=4, seed=0)) if method == 'protonets' else maml_learner(dls, conv4_classifier(3, n_filters=4, seed=0), test_steps=2)
    with learn.no_bar(): learn.show_results()
    assert len(plt.gcf().axes) >= 2 and all('right' in o.get_title(loc='left') for o in plt.gcf().axes[:2])

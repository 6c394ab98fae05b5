"Transforms at their boundary, and in training: what is refused, what is left alone, and where a stopped training ends."
import pytest, torch
from fastai.callback.core import Callback
from fastai.learner import load_learner
from torch import nn
from cactus_nb.backbones import conv4, conv4_classifier
from cactus_nb.data.sets import glyphs
from cactus_nb.data.transforms import *
from cactus_nb.encoders.core import PCA
from cactus_nb.meta.learner import describe, load_run, maml_learner, proto_learner, run_info, save_run
from cactus_nb.runs import ResumeCallback
from cactus_nb.tasks.partition import kmeans_partitions
from cactus_nb.tasks.sample import task_dls

names = [*known_transforms]


@pytest.fixture(scope='module')
def images(): return glyphs()[::8].unlabelled()

@pytest.fixture(scope='module')
def parts(images): return kmeans_partitions(PCA(16).fit(images).embed(images), n_clusters=60, n_partitions=2, seed=0)

@pytest.fixture
def dls(images, parts): return lambda transform=None, **kw: task_dls(images, parts, **dict(n_query=2, n_tasks=8, n_valid=4, bs=2) | kw, transform=transform)

def pixels(n=12, c=1, h=28, w=28): return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))
def batches(dl): return [torch.cat(o) for o in zip(*dl)]
def same(a, b): return all(torch.equal(x, y) for x,y in zip(a, b, strict=True))


# The transforms

@pytest.mark.parametrize('name', names)
@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 20, 31), (2, 9, 5)])
def test_images_stay_images(name, shape):
    "Any channels and sides, the values in 0..1, the input untouched, a row of numbers for one image only."
    t, x = as_transform(name), pixels(6, *shape)
    u, before = torch.rand(6, t.n_random), x.clone()
    y = t(x, u)
    assert torch.equal(x, before) and y.shape == x.shape and y.dtype == torch.float32 and -1e-6 <= y.min() and y.max() <= 1 + 1e-6
    for i in range(6): assert torch.allclose(t(x[i:i+1], u[i:i+1])[0], y[i], atol=1e-6)

@pytest.mark.parametrize('name', names)
def test_ends_of_the_range(name):
    "The smallest and the largest number that can be drawn make finite images; so does no image at all."
    t = as_transform(name)
    for u in (0., 1 - 2**-24): assert t(pixels(), torch.full((12, t.n_random), u)).isfinite().all()
    assert t(pixels()[:0]).shape == (0, 1, 28, 28)

def test_turn_of_a_wide_image():
    "A turn is a turn where width and height differ: a dot right of the middle goes above it, as far away."
    x = torch.zeros(1, 1, 21, 41); x[0,0,10,26] = 1
    y = Affine(degrees=90, scale=(1,1), shear=0, shift=0)(x, torch.zeros(1, 7))
    assert y[0,0,4,20] > 0.999 and abs(y.sum() - 1) < 1e-3

def test_shift_and_scale():
    "The largest shift is a share of each side; a factor of two doubles a length."
    x = torch.zeros(1, 1, 20, 40); x[0,0,10,20] = 1
    still, most = dict(degrees=0, scale=(1,1), shear=0, shift=0), torch.tensor([[.5, .5, .5, .5, 1, 1, 0]])
    assert Affine(**still | dict(shift=0.1))(x, most)[0,0,12,24] > 0.999
    x = torch.zeros(1, 1, 28, 28); x[...,10:18,10:18] = 1
    assert abs(Affine(**still | dict(scale=(2,2)))(x).sum()/x.sum() - 4) < 0.05

@pytest.mark.parametrize('padding, corner', [('zeros', 0.), ('border', 1.), ('reflection', 1.)])
def test_padding(padding, corner):
    y = Affine(degrees=45, scale=(1,1), shear=0, shift=0, padding=padding)(torch.ones(1, 1, 28, 28), torch.zeros(1, 7))
    assert abs(y[0,0,0,0] - corner) < 1e-5 and y[0,0,14,14] > 0.999

@pytest.mark.parametrize('x', [torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), [[1.]], None])
def test_what_is_no_batch_of_images(x):
    for t in (Affine(), Compose(Blur(), Flip()), OwnTransform(nn.Identity())):
        with pytest.raises(ValueError, match='needs images'): t(x)

def test_wrong_numbers():
    for u in (torch.rand(12, 6), torch.rand(11, 7)):
        with pytest.raises(ValueError, match=r'needs \[12, 7\] numbers'): Affine()(pixels(), u)

@pytest.mark.parametrize('f, words', [
    (lambda x: x[...,:14], 'must keep shape and type'),
    (lambda x: x.double(), 'must keep shape and type'),
    (lambda x: (x*255).byte(), 'must keep shape and type'),
    (lambda x: None, 'made a NoneType'),
    (lambda x: x/0, 'made NaN or infinity'),
    (lambda x: x.log().log(), 'made NaN or infinity'),
    (lambda x: 1/0, 'failed on images'),
])
def test_own_that_break(f, words, dls):
    "Found when called, alone and among others, and when loaders are made."
    f.__name__ = 'mine'
    for use in (lambda: dls(f), lambda: dls(['flip', f]), lambda: dls(dict(query=f)), lambda: OwnTransform(f)(pixels()), lambda: Compose(Flip(), OwnTransform(f))(pixels(), torch.rand(12, 1))):
        with pytest.raises(ValueError, match=words) as e: use()
        assert "'mine'" in str(e.value)

def test_loaders_leave_the_generator(dls):
    "Trying a transform moves torch's generator nowhere, so weights that are drawn next are the same."
    before = torch.random.get_rng_state()
    dls(lambda x: x*torch.rand(len(x), 1, 1, 1))
    assert torch.equal(torch.random.get_rng_state(), before)

@pytest.mark.parametrize('spec, words', [
    ('rotate', "no transform 'rotate'. Known are affine, elastic, crop, flip, colour, blur"),
    ('affine;blur', "no transform 'affine;blur'"), ('affine,,blur', 'no transform'), ('affine(', 'no transform'), ('3', 'no transform'), ('os.system(1)', 'no transform'),
    ('affine(degree=3)', 'Its strengths are degrees, scale, shear, shift, p, padding'), ('affine(degrees=x)', 'Its strengths are'), ('affine(degrees=-1)', 'give a number from 0 to 180'),
    ('affine(padding="black")', 'one of zeros, border, reflection'), ('affine(scale=(1.2,0.8))', 'the smaller first'), ('affine(scale=2)', 'two numbers'), ('crop(area=(0.5,2))', 'up to 1'),
    ('elastic(points=1)', 'from 2 to'), ('elastic(points=2.5)', 'whole'), ('flip(p="x")', 'number'), ('blur(sigma=(1,2))', 'number'), (7, 'give a name'), ({'a': 1}, 'give a name'),
])
def test_wrong_spec(spec, words):
    with pytest.raises(ValueError) as e: as_transform(spec)
    assert words in str(e.value)

def test_specs():
    assert as_transform('') is as_transform([]) is as_transform([None, 'none']) is None
    assert as_transform(['affine,blur', Flip()]).name == 'affine,blur,flip' and as_transform(['blur']) == Blur()
    assert as_transform('affine(scale=[0.5, 2])') == Affine(scale=(0.5, 2)) and as_transform('affine(30)') == Affine(30)


# In training

def test_tasks_are_the_same(dls):
    "A transform changes no task, no label and no validation image."
    plain, affine = dls(), dls('affine')
    rows = lambda dls: [dls.train.create_batch([i])[0] for i in range(8)]
    assert same(rows(plain), rows(affine)) and same(batches(dls(nn.Identity()).train), batches(plain.train))
    plain, affine = dls(), dls('affine')
    a, b = batches(plain.train), batches(affine.train)
    assert torch.equal(a[1], b[1]) and torch.equal(a[3], b[3])
    assert all((x != y).any((2, 3, 4)).all() for x,y in zip(a[::2], b[::2]))
    assert same(batches(plain.valid), batches(affine.valid))

def test_support_and_query_apart(dls):
    plain, both = batches(dls().train), batches(dls('elastic').train)
    support, query = [batches(dls({k: 'elastic'}).train) for k in ('support', 'query')]
    assert torch.equal(support[2], plain[2]) and torch.equal(query[0], plain[0])
    assert torch.allclose(support[0], both[0], atol=1e-6) and torch.allclose(query[2], both[2], atol=1e-6)

@pytest.mark.parametrize('spec', [dict(suport='affine'), dict(support='affine', valid='blur'), {}])
def test_keys(dls, spec):
    if not spec: assert dls(spec).train_ds.transform_name == 'none'; return
    with pytest.raises(ValueError, match='support, query or both'): dls(spec)

@pytest.mark.parametrize('spec', ['affine,elastic,blur', dict(support='crop', query='colour')])
def test_batches_and_workers(dls, spec):
    "Images depend on the seed and the pass, and on nothing else."
    one = dls(spec)
    first, second = batches(one.train), batches(one.train)
    for kw in (dict(bs=1), dict(bs=8, num_workers=2), dict(bs=3)): assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(first, batches(dls(spec, **kw).train)))
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], batches(dls(spec, seed=1).train)[0])


class StopIn(Callback):
    def __init__(self, at): self.at = at
    def before_batch(self):
        if self.training and self.epoch == self.at and self.iter == 2: raise KeyboardInterrupt

def learner(dls, method, *cbs):
    if method == 'maml': return maml_learner(dls, conv4_classifier(5, n_filters=4, seed=0), inner_steps=2, test_steps=2, cbs=cbs)
    return proto_learner(dls, conv4(n_filters=4, seed=0), cbs=cbs)

@pytest.mark.parametrize('method', ['protonets', 'maml'])
@pytest.mark.parametrize('spec', ['affine', dict(support='affine', query='elastic,blur')])
def test_resumes(dls, tmp_path, method, spec):
    "Stopped in the second of three epochs and started again: the same weights to the bit."
    def fit(path, *cbs):
        learn = learner(dls(spec), method, ResumeCallback(tmp_path/path), *cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit(3)
        return learn.model.state_dict()
    whole = fit('whole')
    with pytest.raises(KeyboardInterrupt): fit('stopped', StopIn(1))
    rest = fit('stopped')
    assert same(whole.values(), rest.values())

def test_kept_with_a_run(dls, tmp_path):
    "The name is in the run, in what is loaded from it, and in an export, whatever the function was."
    def invert(x): return 1 - x
    for spec, name in [(None, 'none'), ('affine(degrees=30)', 'affine(degrees=30)'), (dict(support='affine'), 'support: affine'), (dict(query=['flip', invert]), 'query: flip,invert')]:
        learn = learner(dls(spec), 'protonets')
        save_run(learn, tmp_path/name)
        assert run_info(tmp_path/name)['transform'] == describe(load_run(tmp_path/name))['transform'] == name
        learn.export(tmp_path/'learn.pkl')
        assert load_learner(tmp_path/'learn.pkl').dls.train_ds.transform_name == name

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU here')
@pytest.mark.parametrize('name', names)
def test_on_a_gpu(name):
    "The images of the CPU, without waiting for the device."
    t, x = as_transform(name), pixels(c=3)
    u = torch.rand(12, t.n_random)
    want, x, u = t(x, u), x.cuda(), u.cuda()
    t(x, u)
    torch.cuda.set_sync_debug_mode('error')
    try: got = t(x, u)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert torch.allclose(got.cpu(), want, atol=1e-4)

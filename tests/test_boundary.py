"""The boundary: what is refused, and with which words; what is taken, and what becomes of it. Every case is tried here.

`nbs/explanations/refused.ipynb` shows these cases from `refused.json` beside it; `python tests/test_boundary.py --write` writes that file."""
import contextlib, errno, functools, gzip, io, json, os, re, shutil, sys, tempfile, traceback, warnings, zipfile
from collections import namedtuple
from pathlib import Path
from unittest import mock

import numpy as np, pytest, torch
from PIL import Image
from torch import nn

import cactus_nb
from cactus_nb import bench, cli
from cactus_nb.all import (ACAI, Affine, Autoencoder, BiGAN, Callback, DeepCluster, Encoder, InfoGAN, Instance, ImageSet, InnerLoop, Learner, ModuleEncoder, OwnEmbedding, PCA, Partitions, ProtoNetCallback, ResumeCallback, Run, Whitened, as_transform,
    AttributeSampler, AttributeSet, InstanceSampler, MixedSampler, NeighbourSampler, PLDA, ReclusterCallback, Round, agreement, fit_rounds, instance_set, celeba, mini_imagenet, mnist, check_embedding, classify, cluster_cores, conv4, conv4_classifier, describe, embedding_report, evaluate, from_folder, glyphs, hyperplane_partitions, kmeans_partitions, knn,
    label_partition, load_run, maml_learner, maml_logits, omniglot, proto_learner, prototypes, random_partitions, read_json, result_table, save_pretrained, save_run,
    save_tensors, task_dls, write_json)
from cactus_nb.data import core, folder as folder_mod, sets
from cactus_nb.score.choose import study_run
from cactus_nb.tasks.sample import TaskSampler

for o in [o for o in globals() if o.startswith('test')]: del globals()[o] # fastcore's, which pytest would take for ours

AREAS = 'Images', 'Your own folder', 'Data sets', 'Embeddings', 'Partitions', 'Tasks', 'Transforms', 'ProtoNets', 'MAML', 'Rounds', 'Runs', 'Scoring', 'Widgets', 'Commands'
STORED = Path(__file__).parent.parent/'nbs'/'explanations'/'refused.json'
Case = namedtuple('Case', 'area given error try_')
REFUSED, TAKEN = [], []

def refuse(area, given, try_, error=ValueError): REFUSED.append(Case(area, given, error, try_))
def take(area, given, becomes):
    "For a function that checks what becomes of it"
    return lambda f: TAKEN.append((Case(area, given, None, f), becomes))


# What the cases are tried on

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (120,1,28,28), dtype=np.uint8)
images = ImageSet(X, np.arange(120)//10, name='toy') # 12 classes of 10 images
photos = images.unlabelled()
z = rng.normal(size=(120, 6)).astype(np.float32)
parts = Partitions(np.stack([np.arange(120)//12]*2)) # 10 clusters of 12
shared = Path(tempfile.mkdtemp()) # for what many cases look at and none changes

def noise(seed, size=(12, 10)): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))

def some(tmp, n=3, name='photos', seed=0):
    "A folder with a few images"
    (tmp/name).mkdir(parents=True, exist_ok=True)
    for i in range(n): noise(seed+i).save(tmp/name/f'{i}.png')
    return tmp/name

def broken(tmp, data, name='bad.png'): (some(tmp)/name).write_bytes(data); return tmp/'photos'
def png(i=0): f = io.BytesIO(); noise(i).save(f, 'png'); return f.getvalue()
def read(path, **kw): return from_folder(path, **dict(size=8, cache=False) | kw)
def csv(tmp, text): (tmp/'labels.csv').write_text(text); return tmp/'labels.csv'
def file(tmp, data=b'mine', name='file'): (tmp/name).write_bytes(data); return tmp/name
def folder(tmp, **files):
    for k,v in files.items(): (tmp/k.replace('__', '.')).write_text(v)
    return tmp

def dls(**kw): return task_dls(photos, parts, **dict(n_tasks=4, n_valid=2, n_query=2) | kw)
def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn
def protonets(net=None, **kw): return proto_learner(dls(), net or conv4(n_filters=4, seed=0), **kw)
def maml(net=None, **kw): return maml_learner(dls(), net or conv4_classifier(5, n_filters=4, seed=0), **dict(test_steps=2) | kw)
def net(): return conv4_classifier(5, n_filters=4, seed=0)
def adapt(net, more=0, **kw): xs, ys, xq, _ = dls().one_batch(); return maml_logits(net, dict(net.named_parameters()), xs, ys+more, xq, **kw)
def scores(f): return evaluate(lambda xs, ys, xq: f(torch.ones(len(xs), xq.shape[1], 5)), images, n_tasks=3, n_query=2)
def right(xs, ys, xq): return torch.ones(len(xs), xq.shape[1], int(ys.max())+1)
def score(method=right, images=images, **kw): return evaluate(method, images, **dict(n_tasks=3, n_query=2) | kw)

class Counts(nn.Module):
    "A network with a buffer that changes"
    def __init__(self): super().__init__(); self.register_buffer('calls', torch.zeros(1)); self.out = nn.Linear(784, 5)
    def forward(self, x): self.calls += 1; return self.out(x.flatten(1))

class Gives(Encoder):
    "An encoder of one's own"
    def __init__(self, z): self.z = z
    def _fit(self, images): pass
    def _embed(self, images): return self.z
del Encoder.known['Gives'] # or every run of the tests would change what is known

@contextlib.contextmanager
def changed(obj, name, value):
    with mock.patch.object(obj, name, value, create=True): yield

@contextlib.contextmanager
def full_disk():
    "As if nothing more went to the disk"
    class Full(io.BytesIO):
        def write(self, *args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with changed(core, 'open', lambda path, mode: (open(path, mode).close(), Full())[1]): yield

def stays(path, what, *contexts):
    "Try `what`, which must fail, and look whether the file at `path` is what it was"
    before, beside = path.read_bytes(), sorted(path.parent.iterdir())
    try:
        with contextlib.ExitStack() as stack: [stack.enter_context(o) for o in contexts]; what()
    finally: assert path.read_bytes() == before and sorted(path.parent.iterdir()) == beside

@functools.cache
def run_of(method, **kw):
    "The folder of a run on glyphs that was never trained"
    path = shared/'runs'/f"{method}{len(kw)}"
    save_run(protonets() if method == 'protonets' else maml(), path, **dict(data='glyphs', split=[100,30,60], seed=0, bn='running') | kw)
    return path

@functools.cache
def embedded():
    "The folder of `cactus_embed`"
    path = shared/'embedded'
    call(cli.cactus_embed, '--encoder', 'pixels', '--split', '20,20,20', '--n_test', 2, '--out', path)
    return path

@functools.cache
def flat(): return some(shared, 60, 'flat')

@contextlib.contextmanager
def own_cache():
    "No case sees or changes what the user keeps"
    with mock.patch.dict(os.environ, CACTUS_CACHE=str(shared/'cache'), FASTAI_HOME=str(shared/'fastai')):
        os.environ.pop('CACTUS_DATA', None) # given back at the end, as the others are
        yield

def call(command, *args):
    "A command in this process: its error, the last line on stderr; what is more than one line is no answer to people"
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try: command([str(o) for o in args])
        except SystemExit as e:
            lines = [o for o in err.getvalue().splitlines() if not o.startswith('warning: ')]
            assert e.code and len(lines) == 1, err.getvalue()
            e.args = lines[0],
            raise


# Images

for given, x in {'float pixels in 0..1': X/255, 'float pixels in 0..255': X.astype(float), 'pixels of 16 bits': X.astype(np.uint16), 'one image in place of many': X[0], 'channels last': np.zeros((3,28,28,3), np.uint8),
                 'images without height': X[:,:,:0], 'a list of paths': ['a.png'], 'nothing': None}.items(): refuse('Images', given, lambda tmp, x=x: ImageSet(x))
for given, kw in {'a label too few': dict(y=[0]*119), 'a negative label': dict(y=[0]*119 + [-1]), 'labels with fractions': dict(y=np.linspace(0, 1, 120)), 'a label far too large': dict(y=[0]*119 + [10**12]),
                  'labels, some of them None': dict(y=['a']*119 + [None]), 'labels of different lengths': dict(y=[[1], [1, 2]]*60), 'a label without a class name': dict(y=[0,1,2]*40, classes=['a','b']), 'a class name twice': dict(y=[0,1]*60, classes=['a','a']),
                  'one text as class names': dict(y=[0,1,2]*40, classes='abc'), 'class names without labels': dict(classes=['a']), 'an id twice': dict(ids=['a']*120), 'an id too few': dict(ids=['a'])}.items():
    refuse('Images', given, lambda tmp, kw=kw: ImageSet(X, **kw))
refuse('Images', 'a row that is not there',             lambda tmp: images[500], IndexError)
refuse('Images', 'rows as a table',                     lambda tmp: images[[[0,1],[2,3]]], IndexError)
refuse('Images', 'a split of more classes than there are', lambda tmp: images.split_classes(9, 9, 9))
refuse('Images', 'a split without labels',              lambda tmp: photos.split_classes(1, 1, 1))
refuse('Images', 'a seed below 0',                      lambda tmp: images.split_classes(1, 1, 1, seed=-1))
refuse('Images', 'a saved set that was cut short',      lambda tmp: (images.save(tmp/'a.npz'), file(tmp, (tmp/'a.npz').read_bytes()[:500], 'a.npz'), ImageSet.load(tmp/'a.npz')))
refuse('Images', 'a foreign npz as a saved set',        lambda tmp: (np.savez(tmp/'a.npz', a=1), ImageSet.load(tmp/'a.npz')))
refuse('Images', 'an npy file as a saved set',          lambda tmp: (np.save(tmp/'a.npy', z), ImageSet.load(tmp/'a.npy')))
refuse('Images', 'a read-only target',                  lambda tmp: stays(file(tmp), lambda: images.save(tmp/'file'/'a.npz')), FileExistsError)
refuse('Images', 'a folder in place of a file to write', lambda tmp: images.save(tmp), IsADirectoryError)
refuse('Images', 'a full disk',                         lambda tmp: (images[:5].save(tmp/'a.npz'), stays(tmp/'a.npz', lambda: images.save(tmp/'a.npz'), full_disk())), OSError)
refuse('Images', 'arrays of another size, to be classified', lambda tmp: classify(protonets(), X[:4,:,:20], list('aabb'), X))


# Your own folder

refuse('Your own folder', 'a folder that is not there', lambda tmp: read(tmp/'none'), FileNotFoundError)
refuse('Your own folder', 'no path',                   lambda tmp: read(''))
refuse('Your own folder', 'one path in place of a list', lambda tmp: folder_mod.decode_images('a.png', (1, 28, 28)))
refuse('Your own folder', 'files none of which is there', lambda tmp: folder_mod.decode_images([tmp/'a.png', tmp/'b.png'], (1, 28, 28)), FileNotFoundError)
refuse('Your own folder', 'a file',                    lambda tmp: read(file(tmp)), NotADirectoryError)
refuse('Your own folder', 'an empty folder',           lambda tmp: read(tmp))
refuse('Your own folder', 'a folder without images',   lambda tmp: read(folder(tmp, notes__txt='', table__csv='')))
refuse('Your own folder', 'nothing but links out of the folder', lambda tmp: ((tmp/'in').mkdir(), os.symlink(some(tmp)/'0.png', tmp/'in'/'0.png'), read(tmp/'in')))
for given, data in {'an empty file': b'', 'text with the name of an image': b'no picture', 'an image that was cut short': png()[:-200], 'a header without an image': png()[:20]}.items():
    refuse('Your own folder', given, lambda tmp, data=data: read(broken(tmp, data)))
refuse('Your own folder', 'broken images only, to be skipped', lambda tmp: (file(tmp, b'x', 'a.png'), read(tmp, on_error='skip')))
refuse('Your own folder', 'an image of too many pixels', lambda tmp: read(some(tmp), max_pixels=100))
refuse('Your own folder', 'values beyond 16 bits',     lambda tmp: (Image.fromarray(np.array([[0, 70000]], np.int32)).save(some(tmp)/'deep.tiff'), read(tmp/'photos')))
refuse('Your own folder', 'NaN in an image of floats', lambda tmp: (Image.fromarray(np.array([[0, np.nan]], np.float32)).save(some(tmp)/'deep.tiff'), read(tmp/'photos')))
refuse('Your own folder', 'labels of images that lie loose', lambda tmp: read(some(tmp), labels=True))
refuse('Your own folder', 'labels for some of the images', lambda tmp: read(some(tmp), labels={'0.png': 'a', 'other.png': 'b'}))
refuse('Your own folder', 'labels as a list',          lambda tmp: read(some(tmp), labels=[0,1,2]))
refuse('Your own folder', 'labels=1 in place of True', lambda tmp: read(some(tmp), labels=1))
refuse('Your own folder', 'a table of labels that is not there', lambda tmp: read(some(tmp), labels=tmp/'none.csv'), FileNotFoundError)
refuse('Your own folder', 'a table of labels without a first line', lambda tmp: read(some(tmp), labels=csv(tmp, '0.png,a\n')))
refuse('Your own folder', 'an image twice in the table', lambda tmp: read(some(tmp), labels=csv(tmp, 'filename,label\n0.png,a\n0.png,b\n')))
for given, kw in {'a size of 0': dict(size=0), 'a size with a fraction': dict(size=8.), 'two channels': dict(channels=2), 'an unknown fit': dict(fit='fill'), 'a background beyond white': dict(background=256), 'an unknown on_error': dict(on_error='ignore'),
                  'fewer than no workers': dict(n_workers=-1)}.items(): refuse('Your own folder', given, lambda tmp, kw=kw: read(some(tmp), **kw))

def vanishes(tmp, how):
    real = folder_mod.decode_image
    def meddle(f, *args, **kw):
        if f.name.endswith('1.png'): how(Path(f.name))
        return real(f, *args, **kw)
    some(tmp)
    with changed(folder_mod, 'decode_image', meddle): read(tmp/'photos', on_error='skip')
refuse('Your own folder', 'an image that vanishes while it is read', lambda tmp: vanishes(tmp, Path.unlink), OSError)
refuse('Your own folder', 'an image that changes while it is read', lambda tmp: vanishes(tmp, lambda f: noise(9, (90, 90)).save(f)), OSError)
def full_cache(tmp):
    read(some(tmp), cache=tmp/'cache')
    kept = next((tmp/'cache').glob('*/*.npy'))
    noise(9).save(tmp/'photos'/'9.png')
    def full(self, row, x): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before = kept.read_bytes()
    try:
        with changed(folder_mod._DiskRows, '_write', full): read(tmp/'photos', cache=tmp/'cache')
    finally: assert kept.read_bytes() == before
refuse('Your own folder', 'a full disk: what was decoded before stays', full_cache, OSError)

def becomes(im, value, suffix='png', **kw):
    "One pixel of an image that is saved and read"
    def check(tmp):
        im().save(tmp/f'a.{suffix}', **kw)
        assert read(tmp, size=1).x[0,:,0,0].tolist() == value
    return check
grey16 = lambda: Image.fromarray(np.full((4,4), 65535//2, np.uint16))
take('Your own folder', '16-bit grey', 'scaled to 8 bits')(becomes(grey16, [127]*3))
take('Your own folder', 'CMYK', 'converted to RGB')(becomes(lambda: Image.new('CMYK', (4,4), (255,255,0,0)), [0,0,255], 'tiff'))
take('Your own folder', 'one pixel', 'stretched to the size asked for')(becomes(lambda: Image.new('RGB', (1,1), (9,8,7)), [9,8,7]))
take('Your own folder', 'an animation', 'its first frame')(becomes(lambda: Image.new('RGB', (4,4), (255,0,0)), [255,0,0], 'gif', save_all=True, append_images=[Image.new('RGB', (4,4), (0,255,0))]))
take('Your own folder', 'transparent pixels', 'laid on white')(becomes(lambda: Image.new('RGBA', (4,4), (255,0,0,0)), [255]*3))
@take('Your own folder', 'names in any script, and with spaces', 'kept as ids')
def _(tmp):
    names = ['Ελλάς γάτα.png', '日本/猫.png', "it's \"one\".png", '🐈.png']
    for i,o in enumerate(names): (tmp/o).parent.mkdir(exist_ok=True); noise(i).save(tmp/o)
    assert read(tmp, labels=False).ids.tolist() == sorted(names)
@take('Your own folder', 'the same image twice', 'both are kept')
def _(tmp): shutil.copy(some(tmp)/'0.png', tmp/'photos'/'copy.png'); assert len(read(tmp/'photos')) == 4
@take('Your own folder', 'a class with one image', 'a class; what it is too small for says so')
def _(tmp): some(tmp, 1, 'all/one'); some(tmp, 3, 'all/three', seed=9); assert read(tmp/'all').class_counts().tolist() == [1, 3]
@take('Your own folder', 'loose images beside sub-folders', 'no labels')
def _(tmp): some(tmp, 1, 'all'); some(tmp, 2, 'all/a', seed=9); assert read(tmp/'all').y is None
@take('Your own folder', 'a link out of the folder', 'not followed, unless follow_links=True')
def _(tmp): os.symlink(some(tmp, 1, 'out')/'0.png', some(tmp)/'link.png'); assert len(read(tmp/'photos')) == 3
@take('Your own folder', 'other files', 'passed over')
def _(tmp): folder(some(tmp), notes__txt=''); assert len(read(tmp/'photos')) == 3
@take('Your own folder', 'a broken image, with on_error=\'skip\'', 'left out')
def _(tmp): assert len(read(broken(tmp, b'x'), on_error='skip')) == 3
@take('Your own folder', 'a cache that cannot be written', 'pixels are kept in memory')
def _(tmp): file(tmp); assert len(read(some(tmp), cache=tmp/'file'/'cache')) == 3


# Data sets

refuse('Data sets', 'a folder that is not there',     lambda tmp: omniglot(tmp/'none'), FileNotFoundError)
refuse('Data sets', 'a folder without the data set',  lambda tmp: omniglot(tmp), FileNotFoundError)
refuse('Data sets', 'a zip that was cut short',       lambda tmp: ([file(tmp, b'PK', f'images_{o}.zip') for o in ('background', 'evaluation')], omniglot(tmp)))
def with_member(tmp, name):
    for o in ('background', 'evaluation'):
        with zipfile.ZipFile(tmp/f'images_{o}.zip', 'w') as f: f.writestr(name, png())
    return tmp
refuse('Data sets', 'a zip with a file that points outside', lambda tmp: omniglot(with_member(tmp, '../outside.png')))
refuse('Data sets', 'a zip of something else',        lambda tmp: omniglot(with_member(tmp, 'readme.txt')))
def with_drawing(tmp, data):
    for o in ('background', 'evaluation'):
        at = tmp/f'images_{o}'/'Latin'/'character01'; at.mkdir(parents=True)
        file(at, data, '1.png')
    return tmp
refuse('Data sets', 'a broken drawing',               lambda tmp: omniglot(with_drawing(tmp, b'x')))
refuse('Data sets', 'a size with a fraction',         lambda tmp: glyphs(size=28.))
refuse('Data sets', 'no drawing of each glyph',       lambda tmp: glyphs(n_variants=0))
refuse('Data sets', 'a download that fails',          lambda tmp: sets.download_file((tmp/'none.zip').as_uri(), tmp/'a.zip', '0'*32, n_tries=1), ConnectionError)
refuse('Data sets', 'a download that is another file', lambda tmp: sets.download_file(file(tmp).as_uri(), tmp/'a.zip', '0'*32, n_tries=1), ConnectionError)


# Data sets of the paper

CSVS = dict(train='train.csv', valid='val.csv', test='test.csv')
def mini(tmp, **more):
    "A folder as mini-ImageNet's, of one class with one image in each part; `more` rows for a part"
    for k,csv in CSVS.items():
        some(tmp, 1, 'images'); (tmp/'images'/'0.png').rename(tmp/'images'/f'{k}.png')
        (tmp/csv).write_text('\n'.join(['filename,label', f'{k}.png,{k}_class', *more.get(k, [])]))
    return tmp
def faces(tmp, attributes=None, parts=None):
    "A folder as CelebA's, of three images; other lines for the lists, where they are given"
    some(tmp, 3, 'img_align_celeba')
    rows = [f"{i}.png {' '.join(['1', '-1']*20)}" for i in range(3)]
    (tmp/'list_attr_celeba.txt').write_text('\n'.join((attributes or (lambda o: o))(['3', ' '.join(f'A{i}' for i in range(40)), *rows])))
    (tmp/'list_eval_partition.txt').write_text('\n'.join(parts or [f'{i}.png {i}' for i in range(3)]))
    return tmp
def digits(tmp, data):
    for o in ('train-images-idx3', 'train-labels-idx1', 't10k-images-idx3', 't10k-labels-idx1'): file(tmp, data, f'{o}-ubyte.gz')
    return tmp
toy = AttributeSet(X, rng.random((120, 3)) < .5, ['round', 'red', 'large'])

refuse('Data sets', 'MNIST: a file that is missing',            lambda tmp: mnist(tmp), FileNotFoundError)
refuse('Data sets', 'MNIST: a file that was cut short',         lambda tmp: mnist(digits(tmp, gzip.compress(b'0'*999)[:-9])))
refuse('Data sets', 'MNIST: a file of something else',          lambda tmp: mnist(digits(tmp, gzip.compress(b'0'*999))))
refuse('Data sets', 'MNIST: a file with other images',          lambda tmp: mnist(digits(tmp, gzip.compress(b'\0\0\x08\x03' + b'\0\0\0\x02'*3 + b'0'*8))))
refuse('Data sets', 'MNIST: more held out than there is',       lambda tmp: ImageSet(X, ids=[f"{'train' if i else 'test'}/{i}" for i in range(120)]).published_split(n_valid=200))
refuse('Data sets', 'a published split, where there is none',   lambda tmp: images.published_split())
refuse('Data sets', 'mini-ImageNet: a folder without it',       lambda tmp: mini_imagenet(tmp), FileNotFoundError)
refuse('Data sets', 'mini-ImageNet: a csv that names a missing file', lambda tmp: mini_imagenet(mini(tmp, valid=['none.png,valid_class'])))
refuse('Data sets', 'mini-ImageNet: a class in two parts',      lambda tmp: mini_imagenet(mini(tmp, test=['other.png,train_class'])))
refuse('Data sets', 'mini-ImageNet: an image in two parts',     lambda tmp: mini_imagenet(mini(tmp, test=['train.png,test_class'])))
refuse('Data sets', 'mini-ImageNet: a csv of something else',   lambda tmp: (mini(tmp), (tmp/'val.csv').write_text('a;b'), mini_imagenet(tmp)))
refuse('Data sets', 'mini-ImageNet: a csv without a row',       lambda tmp: (mini(tmp), (tmp/'val.csv').write_text('filename,label'), mini_imagenet(tmp)))
refuse('Data sets', 'mini-ImageNet: a zip that was cut short',  lambda tmp: mini_imagenet(file(mini(tmp), b'PK', 'images.zip').parent))
refuse('Data sets', 'mini-ImageNet: a broken image',            lambda tmp: mini_imagenet(file(mini(tmp)/'images', b'x', 'train.png').parent.parent))
refuse('Data sets', 'CelebA: a folder without it',              lambda tmp: celeba(tmp), FileNotFoundError)
refuse('Data sets', 'CelebA: a list of attributes of another length', lambda tmp: celeba(faces(tmp, lambda o: o[:-1])))
refuse('Data sets', 'CelebA: a list of other attributes',       lambda tmp: celeba(faces(tmp, lambda o: [o[0], 'Smiling', *o[2:]])))
refuse('Data sets', 'CelebA: a value that is no sign',          lambda tmp: celeba(faces(tmp, lambda o: [*o[:-1], o[-1].replace('-1', '0')])))
refuse('Data sets', 'CelebA: a list of parts that disagrees',   lambda tmp: celeba(faces(tmp, parts=['0.png 0', '1.png 1', '7.png 2'])))
refuse('Data sets', 'CelebA: a part that there is not',         lambda tmp: celeba(faces(tmp, parts=['0.png 0', '1.png 1', '2.png 3'])))
refuse('Data sets', 'CelebA: a part without images',            lambda tmp: celeba(faces(tmp, parts=['0.png 0', '1.png 1', '2.png 1'])))
refuse('Data sets', 'CelebA: an image that is missing',         lambda tmp: (faces(tmp), (tmp/'img_align_celeba'/'1.png').unlink(), celeba(tmp)))
refuse('Data sets', 'attributes of other images',               lambda tmp: AttributeSet(X, toy.attributes[:50], toy.names))
refuse('Tasks', 'attributes: too few images on a side',         lambda tmp: AttributeSampler(toy, k_shot=40))
refuse('Tasks', 'attributes: images without any',               lambda tmp: AttributeSampler(toy.unlabelled()))
refuse('Tasks', 'attributes: more than two classes',            lambda tmp: score(images=toy, n_way=5))
refuse('Tasks', 'a sampler of other tasks',                     lambda tmp: task_dls(toy, AttributeSampler(toy, 1, 2), valid=toy, n_way=2, n_query=3))
refuse('Tasks', 'a sampler and nothing to validate on',         lambda tmp: task_dls(toy, AttributeSampler(toy, 1, 2), n_way=2, n_query=2))
instances = lambda **kw: InstanceSampler(120, **dict(n_way=4) | kw)
refuse('Tasks', 'every image its own class: a way over the images',  lambda tmp: instances(n_way=121))
refuse('Tasks', 'every image its own class: no transform',           lambda tmp: task_dls(photos, instances(), valid=images, n_way=4, n_query=1))
refuse('Tasks', 'neighbours: fewer than a class needs',              lambda tmp: NeighbourSampler(z, 2, n_way=4, k_shot=1, n_query=5))
refuse('Tasks', 'neighbours: more than there are images',            lambda tmp: NeighbourSampler(z, 120, n_way=4))
refuse('Tasks', 'mixed sources: weights that do not add up',         lambda tmp: MixedSampler([instances(), TaskSampler(parts, 4, 1, 1)], [0.5, 0.7]))
refuse('Tasks', 'mixed sources: a weight below 0',                   lambda tmp: MixedSampler([instances(), TaskSampler(parts, 4, 1, 1)], [1.5, -0.5]))
refuse('Tasks', 'mixed sources: tasks of two forms',                 lambda tmp: MixedSampler([instances(), TaskSampler(parts, 5, 1, 1)], [0.5, 0.5]))
refuse('Tasks', 'mixed sources: a weight that is no number',         lambda tmp: MixedSampler([instances(), TaskSampler(parts, 4, 1, 1)], [np.nan, 1.]))
refuse('Tasks', 'single images: a mask in the place of rows',        lambda tmp: InstanceSampler(np.arange(120) < 60, 4))
refuse('Tasks', 'single images: rows that stand twice',              lambda tmp: InstanceSampler([0, 1, 2, 3, 3], 4))
refuse('Tasks', 'single images: rows past the end',                  lambda tmp: InstanceSampler([0, 1, 2, 120], 4, n_images=120))
refuse('Tasks', 'partitions of other images, as many',                lambda tmp: task_dls(photos, Partitions(parts.labels, [dict(fingerprint=images[::-1].fingerprint)]*2), n_query=2))
refuse('Tasks', 'mixed sources: none',                               lambda tmp: MixedSampler([], []))
refuse('Tasks', 'copies to validate on: no transform',               lambda tmp: instance_set(photos, 'none'))


# Rounds

def in_rounds(*rounds, cbs=(), of=images, source=None, transform='affine', make=proto_learner, net=None, **kwargs):
    "A learner fitted in rounds, in the smallest form"
    learn = make(task_dls(of.unlabelled(), source or instances(), valid=of, n_way=4, n_query=1, n_tasks=2, n_valid=2, transform=transform), net or conv4(n_filters=4, seed=0))
    with learn.no_bar(), learn.no_logging(): fit_rounds(learn, [*rounds], cbs=cbs, **kwargs)
    return learn

class Zero(Callback):
    "What a training that collapsed leaves"
    order = 55
    def after_epoch(self): [p.data.zero_() for p in self.model.parameters()]

refuse('Rounds', 'none',                                    lambda tmp: ReclusterCallback([]))
refuse('Rounds', 'no epochs',                               lambda tmp: Round(0))
refuse('Rounds', 'one partition, with none to compare it to', lambda tmp: Round(1, n_partitions=1))
refuse('Rounds', 'a core of more than all images',          lambda tmp: Round(1, core=2))
refuse('Rounds', 'three turns',                             lambda tmp: Round(1, turns=3))
refuse('Rounds', 'no queries',                              lambda tmp: Round(1, n_query=0))
refuse('Rounds', 'an unknown transform',                    lambda tmp: Round(1, transform='bend'))
refuse('Rounds', 'single images as they are',               lambda tmp: Round(1, transform='none', instances=0.5))
refuse('Rounds', 'a transform without a name',              lambda tmp: Round(1, transform=['affine']))
refuse('Rounds', 'quarter turns of images that are not square', lambda tmp: in_rounds(Round(1), Round(1, 10, turns=4), of=ImageSet(X[...,:20], images.y)))
refuse('Rounds', 'shares of tasks over 1',                  lambda tmp: Round(1, earlier=0.7, instances=0.7))
refuse('Rounds', 'a first round with settings of its own',  lambda tmp: in_rounds(Round(1, n_way=5), Round(1, 10)))
refuse('Rounds', 'earlier clusters where there are none yet', lambda tmp: in_rounds(Round(1), Round(1, 10, earlier=0.5)))
refuse('Rounds', 'a checkpoint, but no folder for the partitions', lambda tmp: in_rounds(Round(1), Round(1, 10), cbs=ResumeCallback(tmp/'checkpoint.safetensors')))
refuse('Rounds', 'a fit of another length',                 lambda tmp: in_rounds(Round(2), cbs=ReclusterCallback([Round(3)])))
refuse('Rounds', 'more clusters than images',               lambda tmp: in_rounds(Round(1), Round(1, 121)))
refuse('Rounds', 'clusters too few for the way',            lambda tmp: in_rounds(Round(1), Round(1, 5, n_way=6)))
refuse('Rounds', 'single images in a round, no transform at all', lambda tmp: in_rounds(Round(1), Round(1, 10, instances=0.5), source=parts, transform=None))
refuse('Rounds', 'new weights for a network of one\'s own',  lambda tmp: in_rounds(Round(1), Round(1, 10, fresh_weights=True), net=nn.Sequential(nn.Flatten(), nn.Linear(784, 3))))
refuse('Rounds', 'a wider task than the network of MAML has outputs', lambda tmp: in_rounds(Round(1), Round(1, 10, n_way=6), make=maml_learner, net=conv4_classifier(4, n_filters=4)))
refuse('Rounds', 'MAML on a network without a last layer',  lambda tmp: in_rounds(Round(1), Round(1, 10), make=maml_learner, net=nn.Sequential(nn.Conv2d(1, 4, 28), nn.Flatten())))
refuse('Rounds', 'a collapsed embedding in the first round',lambda tmp: in_rounds(Round(1), Round(1, 10), cbs=Zero()))
def replanned(tmp):
    class Stop(Callback):
        order = ResumeCallback.order+5
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    for k,cbs in ((10, [Stop()]), (12, [])):
        with contextlib.suppress(KeyboardInterrupt): in_rounds(Round(1), Round(2, k), cbs=[ResumeCallback(tmp/'checkpoint'), *cbs], folder=tmp/'rounds')
refuse('Rounds', 'other rounds than those that were interrupted', replanned)
refuse('Rounds', 'agreement of one partition',              lambda tmp: agreement(parts[:1]))


# Embeddings

for given, a in {'NaN in two rows': np.where(np.arange(120)[:,None] % 60 == 7, np.nan, z), 'infinity': np.full((120, 2), np.inf), 'a collapsed embedding': np.ones((120, 3)), 'one number an image': z[:,0], 'one image': z[:1], 'text': [['a']]*120,
                 'rows of different lengths': [[1], [1,2]], 'nothing': None, 'values too large for float32': np.full((9, 2), 1e300)}.items(): refuse('Embeddings', given, lambda tmp, a=a: check_embedding(a))
refuse('Embeddings', 'a row too few',                  lambda tmp: OwnEmbedding(z[:119], photos))
refuse('Embeddings', 'what to pick, not as a function', lambda tmp: ModuleEncoder(nn.Linear(1, 1), pick='pooler_output'))
refuse('Embeddings', 'a file of a module that is picked from, without the function', lambda tmp: (ModuleEncoder(nn.Conv2d(1, 2, 3), pick=lambda o: o[:,0]).save(tmp/'e'), Encoder.load(tmp/'e', model=nn.Conv2d(1, 2, 3))))
refuse('Embeddings', 'a file of an own array, and other images of the same numbers', lambda tmp: (OwnEmbedding(z, photos).save(tmp/'e'), Encoder.load(tmp/'e').embed(ImageSet(255 - X))))
refuse('Embeddings', 'two images for a GAN', lambda tmp: BiGAN(quiet=True).fit(photos[:2]))
refuse('Embeddings', 'an array without its images',    lambda tmp: OwnEmbedding(z))
refuse('Embeddings', 'a file that is not there',       lambda tmp: OwnEmbedding(tmp/'z.npy', photos))
refuse('Embeddings', 'a file of Python objects',       lambda tmp: (np.save(tmp/'z.npy', np.array([{}]), allow_pickle=True), OwnEmbedding(tmp/'z.npy', photos)))
refuse('Embeddings', 'images without a row',           lambda tmp: OwnEmbedding(z, photos).embed(ImageSet(X, ids=[f'new {i}' for i in range(120)])))
refuse('Embeddings', 'other images, numbered from 0 too', lambda tmp: OwnEmbedding(z, photos).embed(ImageSet(255 - X)))
refuse('Embeddings', 'images of another size, numbered from 0 too', lambda tmp: OwnEmbedding(z, photos).embed(ImageSet(X[:,:,:20,:20])))
refuse('Embeddings', 'images of which some stand twice', lambda tmp: OwnEmbedding(z[:3], photos[[0,0,1]]))
refuse('Embeddings', 'an array in place of an ImageSet', lambda tmp: PCA(4).fit(X))
refuse('Embeddings', 'no images',                      lambda tmp: PCA(4).fit(photos).embed(photos[:0]))
refuse('Embeddings', 'an encoder that has not learnt', lambda tmp: PCA(4).embed(photos))
refuse('Embeddings', 'an encoder that has not learnt, to be saved', lambda tmp: PCA(4).save(tmp/'e'))
refuse('Embeddings', 'images of another size',         lambda tmp: PCA(4).fit(photos).embed(ImageSet(X[:,:,:14])))
refuse('Embeddings', 'more components than images',    lambda tmp: PCA(500).fit(photos))
refuse('Embeddings', 'no components',                  lambda tmp: PCA(0))
refuse('Embeddings', 'whitening to more than there is', lambda tmp: Whitened(PCA(4), 5).fit(photos))
refuse('Embeddings', 'an autoencoder without epochs',  lambda tmp: Autoencoder(n_epochs=0))
refuse('Embeddings', 'an autoencoder of one image',    lambda tmp: Autoencoder(n_epochs=1, quiet=True).fit(photos[:1]))
refuse('Embeddings', 'a class in place of a module',   lambda tmp: ModuleEncoder(nn.Flatten))
refuse('Embeddings', 'a module for colour, grey images', lambda tmp: ModuleEncoder(nn.Conv2d(3, 4, 3)).embed(photos))
refuse('Embeddings', 'a module that gives two tensors', lambda tmp: ModuleEncoder(nn.MaxPool2d(2, return_indices=True)).embed(photos))
refuse('Embeddings', 'a standard deviation of 0',      lambda tmp: ModuleEncoder(nn.Flatten(), std=0).embed(photos))
refuse('Embeddings', 'an encoder of your own that gives too few rows', lambda tmp: Gives(z[:3]).fit(photos).embed(photos))
refuse('Embeddings', 'an encoder of your own that cannot be saved', lambda tmp: Gives(z).fit(photos).save(tmp/'e'))
def foreign_encoder(tmp):
    save_tensors(tmp/'e', dict(a=z))
    with changed(Encoder, 'known', {k: v for k,v in Encoder.known.items() if v.__module__.startswith('cactus_nb.')}): Encoder.load(tmp/'e')
refuse('Embeddings', 'damaged safetensors',            lambda tmp: Encoder.load(file(tmp)))
refuse('Embeddings', 'safetensors of another program', foreign_encoder)
refuse('Embeddings', 'an encoder without its settings', lambda tmp: (save_tensors(tmp/'e', dict(a=z), dict(encoder='PCA', config=dict(a=1))), Encoder.load(tmp/'e')))
refuse('Embeddings', 'an encoder that is not there',   lambda tmp: Encoder.load(tmp/'e'), FileNotFoundError)
def small(made, **kw): return made(**made.presets['quick'] | dict(n_epochs=1, bs=32, quiet=True) | kw)
def learnt(made, tmp, **kw): small(made, **kw).fit(photos).save(tmp/'enc.safetensors'); return tmp/'enc.safetensors'
one = ImageSet(np.repeat(X[:1], 120, 0))
class Kill(Callback):
    def after_fit(self): [p.data.zero_() for p in self.model.d[-1].parameters()]
class Poison(Callback):
    order = -10
    def before_batch(self): next(self.model.parameters()).data.fill_(torch.nan)
def shipped(tmp):
    save_pretrained(Encoder.load(learnt(BiGAN, tmp)), 'mine', tmp/'weights')
    return tmp/'weights'
def another(tmp):
    "A file whose header tells of another network"
    enc = Encoder.load(learnt(ACAI, tmp)); enc.config['depth'] = 2; enc.save(tmp/'enc.safetensors')
    return Encoder.load(tmp/'enc.safetensors')
def altered(tmp):
    f = shipped(tmp)/'mine.safetensors'; f.write_bytes(f.read_bytes()[:-1] + b'x')
    return Encoder.pretrained('mine', tmp/'weights')
refuse('Embeddings', 'images too small for ACAI',       lambda tmp: small(ACAI).fit(ImageSet(X[:,:,:6,:6])))
refuse('Embeddings', 'ACAI: three channels for one',    lambda tmp: Encoder.load(learnt(ACAI, tmp)).embed(ImageSet(np.repeat(X, 3, 1))))
refuse('Embeddings', 'BiGAN: one channel for three',    lambda tmp: small(BiGAN).fit(ImageSet(np.repeat(X, 3, 1))).embed(photos))
refuse('Embeddings', 'ACAI: a loss that is not finite', lambda tmp: small(ACAI, cbs=Poison()).fit(photos))
refuse('Embeddings', 'BiGAN: a loss that is not finite',lambda tmp: small(BiGAN, cbs=Poison()).fit(photos))
refuse('Embeddings', 'BiGAN: a negative noise',         lambda tmp: small(BiGAN, noise=-1.))
refuse('Embeddings', 'BiGAN: a dead discriminator',     lambda tmp: small(BiGAN, cbs=Kill()).fit(photos))
refuse('Embeddings', 'BiGAN: the same image throughout', lambda tmp: small(BiGAN).fit(one))
refuse('Embeddings', 'ACAI: the same image throughout', lambda tmp: small(ACAI).fit(one))
refuse('Embeddings', 'weights of another architecture', another)
refuse('Embeddings', 'an unknown pretrained encoder',   lambda tmp: Encoder.pretrained('magic', shipped(tmp)))
refuse('Embeddings', 'a pretrained encoder that was changed', altered)
refuse('Embeddings', 'a pretrained encoder without its file', lambda tmp: ((shipped(tmp)/'mine.safetensors').unlink(), Encoder.pretrained('mine', tmp/'weights')), FileNotFoundError)
refuse('Embeddings', 'a report without labels',         lambda tmp: embedding_report(z, photos))
refuse('Embeddings', 'nothing learnt to be shipped',    lambda tmp: save_pretrained(small(ACAI), 'mine', tmp))
refuse('Embeddings', 'InfoGAN on sides that cannot be halved twice', lambda tmp: InfoGAN(n_epochs=1, quiet=True).fit(ImageSet(np.zeros((40,1,30,30), np.uint8) + np.arange(40, dtype=np.uint8)[:,None,None,None])))
refuse('Embeddings', 'DeepCluster with more clusters than images', lambda tmp: DeepCluster(n_clusters=121, n_epochs=1, quiet=True).fit(photos))
refuse('Embeddings', 'DeepCluster with an unknown network', lambda tmp: DeepCluster(backbone='vgg'))
refuse('Embeddings', 'three views for SimCLR',          lambda tmp: Instance(loss='simclr', n_views=3))
refuse('Embeddings', 'views that are all one',          lambda tmp: Instance(transform='none'))


# Partitions

refuse('Partitions', 'a PLDA of single images',        lambda tmp: PLDA.fit(z, Partitions(np.arange(120))))
refuse('Partitions', 'a PLDA without a share',         lambda tmp: PLDA.fit(z, parts, shrink=0))
refuse('Partitions', 'a PLDA of what has collapsed',   lambda tmp: PLDA.fit(np.repeat(np.eye(10), 12, 0), parts))
refuse('Partitions', 'a PLDA of other images',         lambda tmp: PLDA.fit(z[:100], parts))
refuse('Partitions', 'fractions as clusters',          lambda tmp: Partitions([[0.5, 1]]))
refuse('Partitions', 'a cluster below -1',             lambda tmp: Partitions([[-2, 1]]))
refuse('Partitions', 'a number that int32 cannot hold', lambda tmp: Partitions([[0, 2**40]]))
refuse('Partitions', 'rows of different lengths',      lambda tmp: Partitions([[0], [0, 1]]))
refuse('Partitions', 'more clusters than images',      lambda tmp: kmeans_partitions(z, n_clusters=121))
refuse('Partitions', 'one cluster',                    lambda tmp: kmeans_partitions(z, n_clusters=1))
refuse('Partitions', 'a number as text',               lambda tmp: kmeans_partitions(z, n_clusters='5'))
refuse('Partitions', 'no partition',                   lambda tmp: kmeans_partitions(z, n_clusters=5, n_partitions=0))
refuse('Partitions', 'too few clusters for n_way',     lambda tmp: kmeans_partitions(z, n_clusters=5, n_partitions=1, n_way=20))
refuse('Partitions', 'numbers whose square is beyond float32', lambda tmp: kmeans_partitions(z*1e30, n_clusters=5, n_partitions=1))
refuse('Partitions', 'pixels in place of an embedding', lambda tmp: kmeans_partitions(X, n_clusters=5))
big = np.repeat(z, 10, 0)
refuse('Partitions', 'a negative margin',              lambda tmp: hyperplane_partitions(big, 5, 2, margin=-1))
refuse('Partitions', 'a margin that drops all',        lambda tmp: hyperplane_partitions(big, 5, 2, margin=1e6, max_redraws=3))
refuse('Partitions', 'data far from the planes',       lambda tmp: hyperplane_partitions(big + 1000, 5, 2, max_redraws=3))
refuse('Partitions', 'no core of the clusters',        lambda tmp: cluster_cores(parts, z, core=0))
refuse('Partitions', 'cores in the embedding of other images', lambda tmp: cluster_cores(parts, z[:50]))
refuse('Partitions', 'too few images for planes',      lambda tmp: hyperplane_partitions(z[:50], 5, 2))
refuse('Partitions', 'more zones than there can be',   lambda tmp: hyperplane_partitions(big, 150, 1, max_redraws=3))
refuse('Partitions', 'random clusters that are too small', lambda tmp: random_partitions(120, 100, 1))
refuse('Partitions', 'true classes without labels',    lambda tmp: label_partition(photos))
refuse('Partitions', 'classes of no image',            lambda tmp: label_partition(images[:0]))
refuse('Partitions', 'labels for a summary, too few',  lambda tmp: parts.summary([1,2,3]))
refuse('Partitions', 'a file that is not there',       lambda tmp: Partitions.load(tmp/'p.npz'), FileNotFoundError)
refuse('Partitions', 'a foreign npz',                  lambda tmp: (np.savez(tmp/'p.npz', a=1), Partitions.load(tmp/'p.npz')))
refuse('Partitions', 'a file that was cut short',      lambda tmp: (parts.save(tmp/'p.npz'), file(tmp, (tmp/'p.npz').read_bytes()[:90], 'p.npz'), Partitions.load(tmp/'p.npz')))
refuse('Partitions', 'a full disk',                    lambda tmp: (parts[:1].save(tmp/'p.npz'), stays(tmp/'p.npz', lambda: parts.save(tmp/'p.npz'), full_disk())), OSError)

@take('Partitions', 'clusters that are too small, after all refits', 'images of small clusters are in none')
def _(tmp):
    labels = kmeans_partitions(np.repeat([[0.,0],[1,1],[9,9]], [60, 60, 3], 0), 3, 1, max_refits=1, accept=0.9).labels[0]
    assert (labels[:120] >= 0).all() and (labels[120:] == -1).all()


# Tasks

for given, kw in {'one class': dict(n_way=1), 'no support image': dict(k_shot=0), 'no query': dict(n_query=0), 'more classes than clusters': dict(n_way=11), 'more images than a cluster has': dict(n_query=50), 'n_way with a fraction': dict(n_way=5.),
                  'a seed beyond 64 bits': dict(seed=2**70)}.items():
    refuse('Tasks', given, lambda tmp, kw=kw: TaskSampler(parts, **dict(n_way=5, k_shot=1, n_query=5) | kw))
for given, kw in {'meta-batches of 0': dict(bs=0), 'epochs without tasks': dict(n_tasks=0), 'more held out than there is': dict(valid_pct=2.), 'unlabelled images to validate on': dict(valid=photos),
                  'images of another size to validate on': dict(valid=ImageSet(X[:,:,:14], images.y)), 'too few clusters to hold some out': dict(n_way=7, n_query=8)}.items(): refuse('Tasks', given, lambda tmp, kw=kw: dls(**kw))
refuse('Tasks', 'partitions of other images',          lambda tmp: task_dls(photos[:50], parts))
refuse('Tasks', 'labels in place of Partitions',       lambda tmp: task_dls(photos, parts.labels))


# Transforms

refuse('Transforms', 'an unknown name',                lambda tmp: as_transform('rotate'))
refuse('Transforms', 'an unknown strength',            lambda tmp: as_transform('affine(degree=3)'))
refuse('Transforms', 'a strength out of range',        lambda tmp: as_transform('affine(degrees=-1)'))
refuse('Transforms', 'code in place of a name',        lambda tmp: as_transform('os.system(1)'))
refuse('Transforms', 'a number',                       lambda tmp: as_transform(7))
refuse('Transforms', 'a part of a task that there is not', lambda tmp: dls(transform=dict(valid='affine')))
def halves(x): return x[...,:14]
def nothing(x): return x/0
def doubles(x): return x.double()
def fails(x): return x @ x[0,0,:3,:3]
refuse('Transforms', 'a function that changes the shape', lambda tmp: dls(transform=halves))
refuse('Transforms', 'a function that changes the type', lambda tmp: dls(transform=doubles))
refuse('Transforms', 'a function that makes NaN',      lambda tmp: dls(transform=nothing))
refuse('Transforms', 'a function that fails',          lambda tmp: dls(transform=fails))
refuse('Transforms', 'uint8 pixels',                   lambda tmp: Affine()(torch.tensor(X)))


# ProtoNets

zs, ys = torch.rand(1, 10, 3), torch.arange(5).repeat_interleave(2)[None]
refuse('ProtoNets', 'a support label out of range',    lambda tmp: prototypes(zs, ys, 4))
refuse('ProtoNets', 'a class without support image',   lambda tmp: prototypes(zs, ys, 6))
refuse('ProtoNets', 'labels that do not fit',          lambda tmp: prototypes(zs, ys[:,:4], 5))
refuse('ProtoNets', 'a class in place of a network',   lambda tmp: protonets(conv4))
refuse('ProtoNets', 'a network without parameters',    lambda tmp: protonets(nn.Flatten()))
refuse('ProtoNets', 'a network for colour, grey images', lambda tmp: protonets(conv4(3)))
refuse('ProtoNets', 'a network without filters',       lambda tmp: conv4(n_filters=0))
refuse('ProtoNets', 'a network that gives one number for all', lambda tmp: protonets(nn.Sequential(nn.Flatten(0), nn.Linear(2*784, 1))))
refuse('ProtoNets', 'a label too few, to classify',    lambda tmp: classify(protonets(), X[:4], list('aab'), X))
refuse('ProtoNets', 'images of one class, to classify', lambda tmp: classify(protonets(), X[:4], ['a']*4, X))
refuse('ProtoNets', 'nothing to classify',             lambda tmp: classify(protonets(), X[:4], list('aabb'), X[:0]))
refuse('ProtoNets', 'a file to classify that is no image', lambda tmp: classify(protonets(), X[:4], list('aabb'), [file(tmp)]))
refuse('ProtoNets', 'statistics of something else', lambda tmp: ProtoNetCallback(stats='none'))


# MAML

for given, kw in {'fewer than no inner steps': dict(inner_steps=-1), 'half a step': dict(inner_steps=2.5), 'a negative step size': dict(inner_lr=-1.), 'an unknown inner loss': dict(inner_loss='sum'), 'an unknown part to adapt': dict(adapt='body'),
                  'an unknown head': dict(head='last')}.items(): refuse('MAML', given, lambda tmp, kw=kw: maml(**kw))
refuse('MAML', 'an inner loss that becomes NaN',       lambda tmp: adapt(net(), inner_lr=1e38))
refuse('MAML', 'weights that are NaN, in training',    lambda tmp: fit(maml(net().apply(lambda m: [p.data.fill_(np.nan) for p in m.parameters()]))))
refuse('MAML', 'fewer outputs than classes',           lambda tmp: fit(maml(conv4_classifier(3, n_filters=4))))
refuse('MAML', 'a support label out of range',         lambda tmp: adapt(net(), more=1))
refuse('MAML', 'a network without a head',             lambda tmp: adapt(conv4(n_filters=4, stats='batch'), adapt='head'))
refuse('MAML', 'a network with a buffer that changes', lambda tmp: fit(maml(Counts())))
refuse('MAML', 'images of another size than the network\'s', lambda tmp: maml(conv4_classifier(5, size=84, n_filters=4)))
refuse('MAML', 'scores after every 0th step',          lambda tmp: InnerLoop(net(), every=0))
refuse('MAML', 'more classes than outputs, to classify', lambda tmp: classify(maml(), X[:6], list('abcdef'), X))


# Runs

def resumed(tmp, n=1, model=None):
    learn = protonets(model)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, cbs=ResumeCallback(tmp/'checkpoint'))
def other_run(tmp, **kw):
    run = Run(tmp/'run', dict(n_way=5, seed=0))
    with run.stage('embed'): pass
    stays(tmp/'run'/'config.json', lambda: Run(tmp/'run', dict(n_way=5, seed=0) | kw))
def saved(tmp, **info): save_tensors(tmp/'model.safetensors', protonets().model.state_dict(), describe(protonets()) | info); return load_run(tmp)
def diverged(): learn = protonets(); learn.model[0][0].weight.data.fill_(np.nan); return learn
def nested(tmp):
    run = Run(tmp/'run', {})
    with run.stage('embed'), run.stage('train'): pass
refuse('Runs', 'a stage inside of another', nested)
refuse('Runs', 'a run that is not there',              lambda tmp: load_run(tmp/'run'), FileNotFoundError)
refuse('Runs', 'a folder of something else',           lambda tmp: load_run(folder(tmp, thesis__txt='mine')))
refuse('Runs', 'a half-written run',                   lambda tmp: load_run(folder(tmp, config__json='{}')))
refuse('Runs', 'damaged safetensors',                  lambda tmp: load_run(folder(tmp, model__safetensors='cut')))
refuse('Runs', 'safetensors of another program',       lambda tmp: (save_tensors(tmp/'model.safetensors', dict(a=z)), load_run(tmp)))
refuse('Runs', 'a method that this version does not know', lambda tmp: saved(tmp, method='reptile'))
refuse('Runs', 'a network of your own, not given',     lambda tmp: saved(tmp, backbone=None))
refuse('Runs', 'a distance of your own, not given',    lambda tmp: saved(tmp, distance='manhattan'))
refuse('Runs', 'another network than the one trained', lambda tmp: load_run(run_of('protonets'), model=conv4(n_filters=8)))
refuse('Runs', 'another run\'s folder',                lambda tmp: other_run(tmp, seed=1))
refuse('Runs', 'a folder that holds a trained model, for another training', lambda tmp: (save_run(protonets(), tmp/'run', data='glyphs'), stays(tmp/'run'/'config.json', lambda: Run(tmp/'run', dict(data='glyphs', seed=3)))))
refuse('Runs', 'a folder with other files',            lambda tmp: stays(folder(tmp, thesis__txt='mine')/'thesis.txt', lambda: Run(tmp, {})))
refuse('Runs', 'a folder with another program\'s config.json', lambda tmp: stays(folder(tmp, config__json='{"model_type": "bert"}')/'config.json', lambda: Run(tmp, {})))
refuse('Runs', 'another program\'s model, to be written over', lambda tmp: (save_tensors(tmp/'model.safetensors', dict(a=z)), stays(tmp/'model.safetensors', lambda: save_run(protonets(), tmp))))
refuse('Runs', 'weights that are NaN, to be saved',    lambda tmp: save_run(diverged(), tmp))
refuse('Runs', 'a file in place of a run folder',      lambda tmp: stays(file(tmp), lambda: Run(tmp/'file', {})), FileExistsError)
refuse('Runs', 'a full disk',                          lambda tmp: (save_tensors(tmp/'a', dict(a=z)), stays(tmp/'a', lambda: save_tensors(tmp/'a', dict(a=z[:1])), full_disk())), OSError)
refuse('Runs', 'settings that were cut short',         lambda tmp: read_json(file(tmp, b'{"n_way":', 'config.json')))
refuse('Runs', 'a checkpoint of more epochs',          lambda tmp: (resumed(tmp, 1), resumed(tmp, 2)))
refuse('Runs', 'a checkpoint of another network',      lambda tmp: (resumed(tmp), resumed(tmp, model=conv4(n_filters=8))))
refuse('Runs', 'a checkpoint that was cut short',      lambda tmp: (file(tmp, b'cut', 'checkpoint'), resumed(tmp)))


# Scoring

refuse('Scoring', 'unlabelled images',                 lambda tmp: score(images=photos))
refuse('Scoring', 'an array in place of an ImageSet',  lambda tmp: score(images=X))
refuse('Scoring', 'one task',                          lambda tmp: score(n_tasks=1))
refuse('Scoring', 'more classes than there are',       lambda tmp: score(n_way=13))
refuse('Scoring', 'more images than a class has',      lambda tmp: score(k_shot=9))
refuse('Scoring', 'a number in place of a method',     lambda tmp: score(3))
refuse('Scoring', 'a network in place of a method',    lambda tmp: score(conv4()))
refuse('Scoring', 'an encoder in place of a method',   lambda tmp: score(PCA(4)))
refuse('Scoring', 'a Learner without a meta-learning callback', lambda tmp: score(Learner(dls(), conv4(), loss_func=nn.MSELoss())))
refuse('Scoring', 'scores of the wrong shape',         lambda tmp: scores(lambda s: s[:,:,:3]))
refuse('Scoring', 'scores that are NaN',               lambda tmp: scores(lambda s: s*np.nan))
refuse('Scoring', 'scores as a NumPy array',           lambda tmp: scores(lambda s: s.numpy()))
refuse('Scoring', 'no neighbour',                      lambda tmp: score(knn(PCA(4).fit(photos), k=0)))
refuse('Scoring', 'an array in place of an encoder',   lambda tmp: score(knn(z)))
refuse('Scoring', 'an embedding with too few rows',    lambda tmp: score(knn(lambda x: torch.rand(3, 4))))
refuse('Scoring', 'a difference of results on other tasks', lambda tmp: score() - score(seed=1))
refuse('Scoring', 'a difference of results on other labels', lambda tmp: score() - score(images=ImageSet(X, np.roll(images.y, 5), name='toy')))
refuse('Scoring', 'a difference to a number',          lambda tmp: score() - 20.)
refuse('Scoring', 'a study of settings after a run of MAML', lambda tmp: study_run(run_of('maml'), tmp/'a.json'))
refuse('Scoring', 'a study of settings without validation classes', lambda tmp: (save_run(protonets(), tmp/'run', data='folder', root=str(flat()), size=28, channels=1, split=None, seed=0, bn='running'), study_run(tmp/'run', tmp/'a.json')))
refuse('Scoring', 'a table without rows',              lambda tmp: result_table([]))


# Widgets

from cactus_nb.show.widgets import CompareEmbeddings, InnerSteps, TaskExplorer, TeachIt

def teach(learn=None, **kw): return TeachIt(learn, images, **kw)
refuse('Widgets', 'a task explorer without an embedding', lambda tmp: TaskExplorer(images, {}))
refuse('Widgets', 'an embedding of other images',         lambda tmp: TaskExplorer(images, {'own': z[:50]}, n_clusters=(10,)).static())
refuse('Widgets', 'clusters too small for a task',        lambda tmp: TaskExplorer(images, {'own': z}, n_clusters=(100,)))
refuse('Widgets', 'a way over the clusters at hand',      lambda tmp: TaskExplorer(images, {'own': z}, n_clusters=(10,)).static(n_way=20))
refuse('Widgets', 'inner steps of ProtoNets',             lambda tmp: InnerSteps(protonets(), images))
refuse('Widgets', 'a setting that there is not',          lambda tmp: TaskExplorer(images, {'own': z}, n_clusters=(10,)).static(k=3))
refuse('Widgets', 'no trained learner yet',               lambda tmp: (t := teach(), t.pick(), t.pick(), t.quiz(), t.answer()))
refuse('Widgets', 'examples that are no image',           lambda tmp: teach().teach('mine', [dict(name='a.png', size=4, content=b'text')]))
refuse('Widgets', 'examples without a name',              lambda tmp: teach().teach(' ', [noise(0)]))
refuse('Widgets', 'a file that is huge',                  lambda tmp: teach(max_mb=1).teach('mine', [dict(name='a.png', size=2**21, content=bytes(2**21))]))
refuse('Widgets', 'a question before two classes have examples', lambda tmp: (t := teach(), t.pick(), t.quiz(), t.answer()))
refuse('Widgets', 'one embedding to compare',             lambda tmp: CompareEmbeddings(images, {'own': z}))


# Commands

def command(given, name, *args): refuse('Commands', f'{name}: {given}', lambda tmp: call(getattr(cli, name), *(o(tmp) if callable(o) else o for o in args)), SystemExit)
def out(tmp): return tmp/'run'
demo, train, embed, cut, evals = 'cactus_demo', 'cactus_train', 'cactus_embed', 'cactus_partition', 'cactus_eval'
protos, mamls = (lambda tmp: run_of('protonets')), (lambda tmp: run_of('maml'))

command('an unknown option', demo, '--ways', '5')
command('an unknown data set', demo, '--data', 'imagenet')
command('an unknown method', demo, '--method', 'reptile')
command('a folder without labels', demo, '--data', lambda tmp: flat())
command('one task', demo, '--n_test', 1, '--out', out)
command('a folder of something else, --fresh', demo, '--fresh', '--out', lambda tmp: folder(tmp, config__json='{}'))
command('counts of classes for MNIST', train, '--data', 'mnist', '--split', '5,3,2', '--out', out)
command('the preset best, and clusters', train, '--preset', 'best', '--n_clusters', 100, '--out', out)
command('rounds without the preset best', train, '--n_rounds', 3, '--out', out)
command('three turns', train, '--preset', 'best', '--turns', 3, '--out', out)
command('turns without the preset best', train, '--turns', 4, '--out', out)
command('earlier clusters, and one round', train, '--preset', 'best', '--n_rounds', 1, '--earlier', 0.3, '--out', out)
command('shares of tasks above 1 in rounds', train, '--preset', 'best', '--earlier', 0.7, '--instances', 0.7, '--out', out)
command('new weights without rounds', train, '--fresh_weights', '--out', out)
command('no round of clusters', train, '--preset', 'best', '--n_rounds', 0, '--out', out)
command('the preset best where there is none', train, '--preset', 'best', '--method', 'maml', '--out', out)
command('bfloat16 for MAML', train, '--method', 'maml', '--precision', 'bfloat16', '--out', out)
command('a precision that MAML might not have', train, '--method', 'maml', '--precision', 'auto', '--out', out)
command('clusters for an oracle', train, '--method', 'oracle-protonets', '--n_clusters', 77, '--out', out)
command('an encoder beside an embedding', train, '--embedding', 'z.npy', '--encoder', 'acai', '--out', out)
command('an encoder beside partitions', train, '--partitions', lambda tmp: (parts.save(tmp/'p.npz'), tmp/'p.npz')[1], '--encoder', 'acai', '--out', out)
command('TF32 on a processor', train, '--precision', 'tf32', '--out', out)
command('a precision that is not known', train, '--precision', 'float16', '--out', out)
command('a preset that is not known', train, '--preset', 'great', '--out', out)
command('CelebA in the demo', demo, '--data', 'celeba')
command('another data set\'s folder', demo, '--data', 'omniglot', '--root', lambda tmp: tmp)

for given, args in {'an unknown option': '--foo', 'text in place of a number': '--epochs many', 'no epochs': '--epochs 0', 'a rate of 0': '--lr 0', 'a rate that is no number': '--lr nan', 'a seed below 0': '--seed -1', 'a seed beyond 64 bits': f'--seed {2**70}',
                    'a split in two': '--split 100,30', 'a split in words': '--split many', 'more classes than there are': '--split 9000,1,1', 'more clusters than images': '--n_clusters 99999', 'too large tasks for the classes': '--n_query 20',
                    'an unknown encoder': '--encoder magic', 'an unknown partition': '--partition stars', 'an unknown transform': '--transform afine', 'an unknown schedule': '--schedule warm', 'a setting of MAML for ProtoNets': '--inner_steps 3',
                    'a margin for k-means': '--margin 1', 'a negative margin': '--partition hyperplanes --margin -1', 'a setting of folders for glyphs': '--size 28', 'a place for glyphs, which are drawn': '--root .', 'a folder without its path': '--data folder',
                    'a folder that is not there': '--data nowhere --size 28', 'an embedding that is not there': '--embedding none.npy --split 20,20,20 --n_way 5 --n_clusters 30', 'partitions that are not there': '--partitions none.npz',
                    'partitions, and clusters to cut': '--partitions none.npz --n_clusters 9'}.items(): command(given, train, *args.split(), '--out', out)
own = '--size', 8, '--channels', 1, '--encoder', 'pca'
command('a folder with a broken image', train, '--data', lambda tmp: broken(tmp, b'x'), *own, '--out', out)
command('a folder of three images', train, '--data', lambda tmp: some(tmp), *own, '--out', out)
command('an oracle without labels', train, '--data', lambda tmp: flat(), *own[:4], '--method', 'oracle-protonets', '--out', out)
command('classes of a folder without sub-folders', train, '--data', lambda tmp: flat(), *own, '--split', '2,2,2', '--out', out)
command('images too small for the network', train, '--data', lambda tmp: flat(), *own, *'--n_partitions 1 --n_clusters 5 --n_way 2 --n_query 2'.split(), '--out', out)
command('an embedding with too few rows', train, '--embedding', lambda tmp: (np.save(tmp/'z.npy', z), tmp/'z.npy')[1], *'--split 20,20,20 --n_way 5 --n_clusters 30'.split(), '--out', out)
command('partitions of other images', train, '--partitions', lambda tmp: (parts.save(tmp/'p.npz'), tmp/'p.npz')[1], *'--split 20,20,20'.split(), '--out', out)
def cut_of(seed): # partitions of glyphs that this seed split
    n = 20*20; p = Partitions(np.arange(n)[None] // 20); p.notes[0]['fingerprint'] = glyphs().split_classes(20, 20, 20, seed=seed)[0].fingerprint; return p
command('partitions of another seed\'s images', train, '--partitions', lambda tmp: (cut_of(1).save(tmp/'p.npz'), tmp/'p.npz')[1], *'--split 20,20,20'.split(), '--out', out)
command('a read-only target', train, *'--split 20,20,20 --n_clusters 30'.split(), '--out', lambda tmp: file(tmp)/'run')
command('a folder of something else', train, *'--split 20,20,20 --n_clusters 30'.split(), '--out', lambda tmp: folder(tmp, thesis__txt='mine'))
command('a folder of another run', train, *'--split 20,20,20 --n_clusters 30'.split(), '--out', lambda tmp: embedded())
def interrupted(tmp):
    def stop(*args): raise KeyboardInterrupt
    with changed(cli, 'load_splits', stop): call(cli.cactus_train, '--out', tmp/'run')
refuse('Commands', 'cactus_train: Ctrl-C', interrupted, SystemExit)
def no_memory(tmp):
    def fail(*args): raise MemoryError
    with changed(cli, 'load_splits', fail): call(cli.cactus_train, '--out', tmp/'run')
refuse('Commands', 'cactus_train: more than fits into memory', no_memory, SystemExit)
def no_memory_of_torch(tmp):
    with changed(cli, 'load_splits', lambda *args: torch.empty(2**58)): call(cli.cactus_train, '--out', tmp/'run')
refuse('Commands', 'cactus_train: more than torch can have', no_memory_of_torch, SystemExit)

for given, args in {'an unknown encoder': '--encoder magic', 'no epochs': '--encoder_epochs 0', 'epochs for PCA': '--encoder pca --encoder_epochs 3', 'an unknown preset of an encoder': '--encoder acai --encoder_preset huge', 'a preset for an encoder that has none': '--encoder autoencoder --encoder_preset quick', 'one task': '--n_test 1', 'a split in two': '--split 9,9'}.items(): command(given, embed, *args.split(), '--out', out)
refuse('Commands', 'cactus_bench: an unknown row', lambda tmp: call(bench.cactus_bench, '--rows', 'speed'), SystemExit)
refuse('Commands', 'cactus_bench: rows of growth', lambda tmp: call(bench.cactus_bench, '--growth', '--rows', 'demo'), SystemExit)
refuse('Commands', 'cactus_bench: an unknown device', lambda tmp: call(bench.cactus_bench, '--device', 'mars'), SystemExit)
command('a report without labelled test classes', embed, '--data', lambda tmp: flat(), *own, '--report', '--out', out)
command('no run', cut)
command('a run that is not there', cut, '--run', 'nowhere')
command('a run without an encoder', cut, '--run', protos)
for given, args in {'an unknown partition': '--partition stars', 'a negative margin': '--partition hyperplanes --margin -1', 'more clusters than images': '--n_clusters 999', 'clusters that are too small': '--partition random --n_clusters 300', 'no partition': '--n_partitions 0'}.items():
    command(given, cut, '--run', lambda tmp: embedded(), *args.split(), '--out', out)
command('no run', evals)
command('a run that is not there', evals, '--run', 'nowhere')
command('a half-written run', evals, '--run', lambda tmp: folder(tmp, config__json='{}'))
command('a damaged model', evals, '--run', lambda tmp: folder(tmp, model__safetensors='cut'))
for given, args in {'another data set': '--data omniglot', 'an unknown split': '--split train', 'more classes than there are': '--n_way 500', 'n_way in words': '--n_way five', 'one task': '--n_test 1', 'inner steps for ProtoNets': '--test_steps 3',
                    'a place for glyphs, which are drawn': '--root .'}.items(): command(given, evals, '--run', protos, *args.split())
command('fewer than no inner steps', evals, '--run', mamls, '--test_steps', -1)
command('views of a learner without embeddings', evals, '--run', mamls, '--n_views', 4)
command('a PLDA of a learner without embeddings', evals, '--run', mamls, '--plda')
command('no view', evals, '--run', protos, '--n_views', 0)
command('a transform for views that were not asked for', evals, '--run', protos, '--transform', 'affine')
command('views in each round', evals, '--run', protos, '--rounds', '--n_views', 4)
command('a share for a PLDA that was not asked for', evals, '--run', protos, '--shrink', 0.1)
command('a PLDA in each round', evals, '--run', protos, '--rounds', '--plda')
command('more classes than outputs', evals, '--run', mamls, '--n_way', 20)
command('a folder without sub-folders', evals, '--run', protos, '--data', lambda tmp: flat())
command('a run on a folder without labels', evals, '--run', lambda tmp: run_of('protonets', data='folder', split=None))
command('a split of a folder', evals, '--run', protos, '--data', lambda tmp: flat(), '--split', 'valid')
command('rounds of a run that is not there', evals, '--run', 'nowhere', '--rounds')
command('images that are not those of the run', evals, '--run', lambda tmp: run_of('protonets', fingerprint='0'*16, steps=1))


# Trying them

ours = str(Path(cactus_nb.__file__).parent)

def foreign(e):
    "The words of other libraries that `e` quotes, which differ between their versions"
    while e := e.__cause__ or e.__context__:
        where = traceback.extract_tb(e.__traceback__)
        if where and (not where[-1].filename.startswith(ours) or 'raise' not in where[-1].line) and not where[-1].filename.endswith('argparse.py'):
            yield from sorted({str(e), ' '.join(str(e).split())[:200], (str(e).splitlines() or [''])[0], str(e).splitlines()[-1].strip() if str(e) else ''}, key=len, reverse=True)

def says(e, tmp):
    "The message of `e`, with placeholders for what is different each time"
    text = str(e).split('\n\t')[-1] # fastai puts the event's name before a tab
    for o in foreign(e):
        if len(o) > 12: text = text.replace(o, 'REASON')
    return placed(text, tmp)

def placed(text, tmp):
    for o in (tmp, shared, tmp.resolve(), shared.resolve()): text = text.replace(str(o), 'FOLDER')
    return re.sub(r'\b[0-9a-f]{16}\b(?<!0{16})', 'DIGEST', text.replace('file://FOLDER', 'FOLDER'))

def tried(case, tmp):
    "What a case says; fails where it is not refused with its own error"
    with own_cache(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(case.error) as e: case.try_(tmp)
    assert type(e.value) is case.error, f'{type(e.value).__name__} where {case.error.__name__} was to come'
    return says(e.value, tmp)

def warned(case, tmp):
    "What a case warns of"
    with own_cache(), warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        case.try_(tmp)
    return placed(' '.join(str(o.message) for o in w if o.category is UserWarning), tmp)

def row(case, try_, **more):
    "What the page shows of a case"
    with tempfile.TemporaryDirectory() as d: return dict(area=case.area, given=case.given, says=try_(case, Path(d)), **more)

def everything():
    "All rows, in the order of areas"
    res = dict(refused=[row(o, tried, error=o.error.__name__) for o in REFUSED], taken=[row(o, warned, becomes=becomes) for o,becomes in TAKEN])
    return {k: sorted(v, key=lambda o: (AREAS.index(o['area']), o['given'])) for k,v in res.items()}


@functools.cache
def stored(kind): return {(o['area'], o['given']): o for o in json.loads(STORED.read_text(encoding='utf-8'))[kind]}

def name(case): return f'{case.area}: {case.given}'
how = 'python tests/test_boundary.py --write shows what has changed'

@pytest.fixture(scope='module', autouse=True)
def away(): yield; shutil.rmtree(shared, ignore_errors=True)

@pytest.mark.parametrize('case', REFUSED, ids=name)
def test_refused(case, tmp_path):
    "Refused with its own error, in the words that the page shows"
    row = stored('refused')[case.area, case.given]
    assert (tried(case, tmp_path), case.error.__name__) == (row['says'], row['error']), how

@pytest.mark.parametrize('case, becomes', TAKEN, ids=[name(o) for o,_ in TAKEN])
def test_taken(case, becomes, tmp_path):
    "Taken as the page says, with the warning that it shows"
    row = stored('taken')[case.area, case.given]
    assert (warned(case, tmp_path), becomes) == (row['says'], row['becomes']), how

def test_page_is_whole():
    "No row of the page is without its case, none is there twice, and every message is one line that says more than a word."
    for kind, cases in (('refused', REFUSED), ('taken', [o for o,_ in TAKEN])):
        keys = [(o.area, o.given) for o in cases]
        assert len(keys) == len(set(keys)) and set(stored(kind)) == set(keys), how
    assert len({o['says'] for o in stored('refused').values()}) >= 60 and {o[0] for o in stored('refused')} == set(AREAS)
    for o in stored('refused').values(): assert '\n' not in o['says'] and len(o['says'].split()) > 3, o


if __name__ == '__main__':
    if sys.argv[1:] != ['--write']: sys.exit('python tests/test_boundary.py --write writes the page\'s table; pytest compares with it')
    try: write_json(STORED, everything())
    finally: shutil.rmtree(shared, ignore_errors=True)

"The data sets of the paper: whole, cut short, foreign or half decoded; and the tasks that are made of attributes."
import gzip, hashlib, io, os, signal, subprocess, sys, time, zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cactus_nb.data import folder as folder_mod, papers
from cactus_nb.data.core import ImageSet
from cactus_nb.data.papers import AttributeSet, celeba, mini_imagenet, mnist
from cactus_nb.tasks.attributes import AttributeSampler

DATA = os.getenv('CACTUS_DATA')  # before the tests hide it
posix = pytest.mark.skipif(os.name != 'posix', reason='needs signals')


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    "No test sees or changes what the user has."
    for k in ('CACTUS_CACHE', 'FASTAI_HOME'): monkeypatch.setenv(k, str(tmp_path/k.lower()))
    monkeypatch.delenv('CACTUS_DATA', raising=False)


def jpeg(seed, size=(30, 24)):
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(f, 'jpeg')
    return f.getvalue()


# MNIST

def idx(a): return gzip.compress(bytes([0, 0, 8, a.ndim]) + np.array(a.shape, '>u4').tobytes() + a.tobytes())
def digits(n): return dict(images=np.arange(n*784).reshape(n, 28, 28).astype(np.uint8), labels=(np.arange(n)%10).astype(np.uint8))
names = dict(images='images-idx3-ubyte.gz', labels='labels-idx1-ubyte.gz')

@pytest.fixture
def digits_at(tmp_path, monkeypatch):
    "A folder as MNIST's, of thirty and ten digits."
    monkeypatch.setattr(papers, '_mnist_sizes', dict(train=30, t10k=10))
    (tmp_path/'mnist').mkdir()
    for stem,n in (('train', 30), ('t10k', 10)):
        for k,a in digits(n).items(): (tmp_path/'mnist'/f'{stem}-{names[k]}').write_bytes(idx(a))
    return tmp_path/'mnist'


def test_mnist(digits_at):
    ims = mnist(digits_at)
    assert len(ims) == 40 and ims.shape == (1, 28, 28) and ims.ids[30] == 'test/00000' and ims.x.flags.writeable
    train,valid,test = ims.published_split(n_valid=5, seed=3)
    assert [len(o) for o in (train, valid, test)] == [25, 5, 10] and not {*train.ids} & {*valid.ids}
    assert (ims.published_split(n_valid=5, seed=3)[1].ids == valid.ids).all() and (ims.published_split(n_valid=5, seed=4)[1].ids != valid.ids).any()
    assert (test.x == ims.x[30:]).all() and (test.y == np.arange(10)).all()


@pytest.mark.parametrize('change, words', [
    (lambda b: b[:-20], 'is not a whole gzip file'),
    (lambda b: b[:40], 'is not a whole gzip file'),
    (lambda b: b'', 'is not an idx file'),
    (lambda b: b'PK\3\4' + b[4:], 'is not a whole gzip file'),
    (lambda b: gzip.compress(gzip.decompress(b)[:-1]), 'is not an idx file of bytes, or not a whole one'),
    (lambda b: gzip.compress(b'\0\0\x0d' + gzip.decompress(b)[3:]), 'is not an idx file of bytes'),
    (lambda b: idx(digits(9)['images']), 'holds [9, 28, 28] bytes, MNIST has [10, 28, 28]'),
    (lambda b: idx(np.zeros((10, 32, 32), np.uint8)), 'MNIST has [10, 28, 28]'),
])
def test_mnist_damaged(digits_at, change, words):
    f = digits_at/'t10k-images-idx3-ubyte.gz'
    f.write_bytes(change(f.read_bytes()))
    with pytest.raises(ValueError) as e: mnist(digits_at)
    assert words in str(e.value) and str(f) in str(e.value) and 'get it again' in str(e.value)


def test_mnist_of_letters(digits_at):
    (digits_at/'t10k-labels-idx1-ubyte.gz').write_bytes(idx(np.arange(10, 20).astype(np.uint8)))
    with pytest.raises(ValueError, match='a label 19, and digits go from 0 to 9'): mnist(digits_at)


def test_mnist_is_downloaded(digits_at, tmp_path, monkeypatch):
    "From the second mirror, where the first has nothing; what is there is not fetched again."
    monkeypatch.setattr(papers, '_mnist_urls', ((tmp_path/'none').as_uri() + '/', digits_at.as_uri() + '/'))
    monkeypatch.setattr(papers, '_mnist_md5', {o.name: hashlib.md5(o.read_bytes()).hexdigest() for o in digits_at.iterdir()})
    real = papers.download_file
    monkeypatch.setattr(papers, 'download_file', lambda *args: real(*args, n_tries=1))
    ims = mnist()
    assert ims.fingerprint == mnist(digits_at).fingerprint
    (digits_at/'train-images-idx3-ubyte.gz').unlink()
    assert mnist().fingerprint == ims.fingerprint
    (papers.data_root('mnist')/'train-images-idx3-ubyte.gz').unlink()
    with pytest.raises(ConnectionError, match='get it by hand'): mnist()
    (digits_at/'train-images-idx3-ubyte.gz').write_bytes(b'another file')
    with pytest.raises(ConnectionError, match='md5 of what came'): mnist()
    with pytest.raises(FileNotFoundError, match='leave out root to download it'): mnist(digits_at.parent)


# mini-ImageNet

CSVS = dict(train='train.csv', valid='val.csv', test='test.csv')

def draw_mini(root, n=5, packed=False):
    "A folder as mini-ImageNet is published: two classes in each part, `n` images in each class."
    root.mkdir()
    files = {}
    for k,csv in enumerate(CSVS.values()):
        rows = [(f'n{k}{c}_{i}.jpg', f'n{k}{c}') for c in range(2) for i in range(n)]
        files |= {name: jpeg(1000*k + j) for j,(name,_) in enumerate(rows)}
        (root/csv).write_text('\n'.join(['filename,label', *map(','.join, rows)]))
    if packed:
        with zipfile.ZipFile(root/'images.zip', 'w') as z: [z.writestr(f'images/{k}', v) for k,v in files.items()]
    else:
        (root/'images').mkdir()
        for k,v in files.items(): (root/'images'/k).write_bytes(v)
    return root

@pytest.fixture
def mini(tmp_path): return draw_mini(tmp_path/'mini')


def test_mini_folder_and_zip(mini, tmp_path):
    a,b = mini_imagenet(mini, size=8),mini_imagenet(draw_mini(tmp_path/'packed', packed=True), size=8)
    assert a.fingerprint == b.fingerprint and (a.ids == b.ids).all() and a.classes == b.classes == ['n00', 'n01', 'n10', 'n11', 'n20', 'n21']
    assert (a.x[7] == folder_mod.decode_image(mini/'images'/a.ids[7].split('/')[1], (3, 8, 8), 'stretch')).all()
    assert mini_imagenet(mini, size=6).shape == (3, 6, 6) and mini_imagenet(mini, size=8).fingerprint == a.fingerprint


def test_mini_stays_on_disk(mini):
    "Neither a part nor what has no labels is a copy."
    ims = mini_imagenet(mini, size=8)
    for o in (*ims.published_split(), *ims.unlabelled().published_split()):
        for p in (o, o.unlabelled()): assert isinstance(p.x, np.memmap) and np.shares_memory(p.x, ims.x) and len(p) == 10
    assert [o.classes for o in ims.published_split()] == [['n00', 'n01'], ['n10', 'n11'], ['n20', 'n21']]


def test_labels_do_not_move_images(mini):
    before = mini_imagenet(mini, size=8).published_split()[0]
    shuffled = ImageSet(before.x, before.y[::-1], before.classes, before.ids)
    assert shuffled.unlabelled().fingerprint == before.fingerprint


@pytest.mark.parametrize('csv, row, words', [
    ('val.csv', 'gone.jpg,n10', 'names 1 file(s) that'),
    ('val.csv', '../val.csv,n10', 'does not hold, the first is ../val.csv'),
    ('test.csv', 'n30_0.jpg,n01', 'share 1 class(es), the first is n01'),
    ('test.csv', 'n00_0.jpg,n21', 'share 1 file(s), the first is n00_0.jpg'),
    ('test.csv', 'n20_0.jpg,n21', 'stands there more than once'),
    ('test.csv', 'n20_0.jpg', 'a line must be a name and a label'),
])
def test_mini_csv_that_does_not_fit(mini, tmp_path, csv, row, words):
    with open(mini/csv, 'a') as f: f.write('\n' + row)
    with pytest.raises(ValueError) as e: mini_imagenet(mini, size=8)
    assert words in str(e.value) and csv in str(e.value)
    assert not (tmp_path/'cactus_cache').exists()  # nothing was decoded


@pytest.mark.parametrize('text, words', [('', 'the first line must be filename,label'), ('filename,label\n', 'names no file'), ('a,b\nc,d', 'the first line must be filename,label')])
def test_mini_foreign_csv(mini, text, words):
    (mini/'train.csv').write_text(text)
    with pytest.raises(ValueError, match=words): mini_imagenet(mini)


def test_mini_not_there(mini, tmp_path):
    (mini/'images').rename(mini/'pictures')
    with pytest.raises(FileNotFoundError, match='holds no images.zip, nor a folder images. mini-ImageNet cannot be downloaded from here.*image-net.org'): mini_imagenet(mini)
    with pytest.raises(FileNotFoundError, match='mini-ImageNet cannot be downloaded'): mini_imagenet()
    with pytest.raises(FileNotFoundError, match='there is no folder'): mini_imagenet(tmp_path/'none')


def test_mini_damaged_zip(tmp_path):
    root = draw_mini(tmp_path/'packed', packed=True)
    whole = (root/'images.zip').read_bytes()
    for bad in (whole[:-100], b'', b'no zip'):
        (root/'images.zip').write_bytes(bad)
        with pytest.raises(ValueError, match='images.zip is not a whole zip file'): mini_imagenet(root)
    data = bytearray(whole)
    data[data.index(b'JFIF') + 100] ^= 255
    (root/'images.zip').write_bytes(data)
    with pytest.raises(ValueError, match=r'1 of 30 images cannot be read: .*images/n00_0.jpg'): mini_imagenet(root, size=8)
    with zipfile.ZipFile(root/'images.zip', 'w') as z: z.writestr('../images/n00_0.jpg', b'x')
    with pytest.raises(ValueError, match='points outside'): mini_imagenet(root)


def test_mini_damaged_picture(mini):
    "Named; the others are kept, and the next call decodes nothing but it."
    good = (mini/'images'/'n10_0.jpg').read_bytes()
    (mini/'images'/'n10_0.jpg').write_bytes(good[:200])
    with pytest.raises(ValueError, match='1 of 30 images cannot be read.*n10_0.jpg'): mini_imagenet(mini, size=8)
    (mini/'images'/'n10_0.jpg').write_bytes(good)
    assert len(mini_imagenet(mini, size=8)) == 30


SCRIPT = '''
import sys, time
from cactus_nb.data import folder
from cactus_nb.data.papers import mini_imagenet
real = folder._decode_row
def slow(file, *args, **kwargs):
    with open(sys.argv[2], 'a') as f: f.write(file + '\\n')
    time.sleep(.01)
    return real(file, *args, **kwargs)
folder._decode_row = slow
print(mini_imagenet(sys.argv[1], size=8, n_workers=0).fingerprint)
'''

@pytest.mark.once
@posix
def test_mini_killed_and_finished(tmp_path):
    "A call that was killed leaves half a cache; the next notices, and decodes only what is missing."
    root,env = draw_mini(tmp_path/'mini', n=50),os.environ | dict(PYTHONPATH=str(Path(papers.__file__).parents[2]))
    def start(log): return subprocess.Popen([sys.executable, '-c', SCRIPT, root, tmp_path/log], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    def lines(log): return (tmp_path/log).read_text().splitlines() if (tmp_path/log).exists() else []
    p,end = start('first'),time.monotonic() + 120
    while len(lines('first')) < 150 and p.poll() is None and time.monotonic() < end: time.sleep(.01)
    p.send_signal(signal.SIGKILL); p.wait()
    assert 150 <= len(lines('first')) < 300 and not list((tmp_path/'cactus_cache').rglob('*.npy'))
    out,err = start('second').communicate(timeout=120)
    assert 0 < len(lines('second')) <= 300 - 128, err  # two chunks of 64 were safe
    assert len({*lines('first'), *lines('second')}) == 300
    assert out.strip() == mini_imagenet(root, size=8).fingerprint, err
    whole = next((tmp_path/'cactus_cache').rglob('*.npy'))
    whole.write_bytes(whole.read_bytes()[:-1000])  # a copy of the cache that was cut short
    assert mini_imagenet(root, size=8, n_workers=0).fingerprint == out.strip()


# CelebA

def draw_celeba(root, n=4, packed=False):
    root.mkdir()
    has,files = np.random.default_rng(0).random((3*n, 40)) < .5,[f'{i:06d}.jpg' for i in range(1, 3*n + 1)]
    if packed:
        with zipfile.ZipFile(root/'img_align_celeba.zip', 'w') as z: [z.writestr(f'img_align_celeba/{o}', jpeg(i, (178, 218))) for i,o in enumerate(files)]
    else:
        (root/'img_align_celeba').mkdir()
        for i,o in enumerate(files): (root/'img_align_celeba'/o).write_bytes(jpeg(i, (178, 218)))
    rows = [' '.join([f, *('1' if o else '-1' for o in h)]) for f,h in zip(files, has)]
    (root/'list_attr_celeba.txt').write_text('\n'.join([str(3*n), ' '.join(f'A{i}' for i in range(40)), *rows]) + '\n')
    (root/'list_eval_partition.txt').write_text(''.join(f'{f} {2 - i//n}\n' for i,f in enumerate(files)))  # test comes first here
    return root, has

def test_celeba(tmp_path):
    root,has = draw_celeba(tmp_path/'celeba')
    ims = celeba(root, size=8)
    assert ims.ids.tolist() == [f'{p}/{i:06d}.jpg' for p,i in [*(('train', i) for i in (9, 10, 11, 12)), *(('valid', i) for i in (5, 6, 7, 8)), *(('test', i) for i in (1, 2, 3, 4))]]
    assert (ims.attributes == has[[8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3]]).all() and ims.y is None and isinstance(ims.x, np.memmap)
    assert (ims.x[0] == folder_mod.decode_image(root/'img_align_celeba'/'000009.jpg', (3, 8, 8))).all()
    assert celeba(draw_celeba(tmp_path/'packed', packed=True)[0], size=8).fingerprint == ims.fingerprint
    parts = ims.published_split()
    assert [o.names for o in parts] == [[f'A{i}' for i in r] for r in (range(20), range(20, 30), range(30, 40))]
    assert (parts[1].attributes == has[4:8, 20:30]).all() and (parts[1][[2, 0]].attributes == has[[6, 4], 20:30]).all()
    free = ims.unlabelled()
    for o in (free, free[:3], *free.published_split()): assert o.attributes is None and o.y is None and o.names == []
    assert (free.published_split()[2].ids == parts[2].ids).all() and ims.attributes is not None


@pytest.mark.parametrize('file, change, words', [
    ('list_attr_celeba.txt', lambda o: o[:-1], 'says that it has 12 images and has 11'),
    ('list_attr_celeba.txt', lambda o: ['11', *o[1:]], 'says that it has 11 images and has 12'),
    ('list_attr_celeba.txt', lambda o: o[2:], 'the first line must be the number of images'),
    ('list_attr_celeba.txt', lambda o: [], 'the first line must be the number of images'),
    ('list_attr_celeba.txt', lambda o: [o[0], o[1] + ' A40', *o[2:]], 'the names of 40 attributes'),
    ('list_attr_celeba.txt', lambda o: [*o[:-1], o[-1] + ' 1'], 'another file and 40 values, 1 or -1'),
    ('list_attr_celeba.txt', lambda o: [*o[:-1], o[-1].replace('-1', '0')], 'another file and 40 values, 1 or -1'),
    ('list_attr_celeba.txt', lambda o: [*o[:-1], o[-2]], 'another file and 40 values'),
    ('list_eval_partition.txt', lambda o: o[:-1], 'disagree: 1 image(s) stand in one of them only, the first is 000012.jpg'),
    ('list_eval_partition.txt', lambda o: [*o, '000013.jpg 0'], 'the first is 000013.jpg'),
    ('list_eval_partition.txt', lambda o: [*o[:-1], '000012.jpg 3'], "its part, 0, 1 or 2, got '000012.jpg 3'"),
    ('list_eval_partition.txt', lambda o: [*o, o[0]], 'another file and its part'),
    ('list_eval_partition.txt', lambda o: [f.replace(' 1', ' 2') for f in o], 'has no image to validate on'),
    ('list_eval_partition.txt', lambda o: ['\x89PNG\r\n'], 'its part, 0, 1 or 2'),
])
def test_celeba_refuses(tmp_path, file, change, words):
    root,_ = draw_celeba(tmp_path/'celeba')
    lines = (root/file).read_text().splitlines()
    (root/file).write_text('\n'.join(change(lines)))
    with pytest.raises(ValueError) as e: celeba(root)
    assert words in str(e.value) and file in str(e.value) and not (tmp_path/'cactus_cache').exists()


def test_celeba_not_there(tmp_path):
    root,_ = draw_celeba(tmp_path/'celeba')
    (root/'img_align_celeba'/'000007.jpg').unlink()
    with pytest.raises(ValueError, match='names 1 file.* that .*img_align_celeba does not hold, the first is 000007.jpg'): celeba(root)
    (root/'list_attr_celeba.txt').unlink()
    with pytest.raises(FileNotFoundError, match='holds no list_attr_celeba.txt. CelebA cannot be downloaded from here: its terms'): celeba(root)


def test_attribute_tasks_by_hand():
    "The pools of a set that is small enough to write them down, from the words of the paper."
    from itertools import combinations, product
    has = np.random.default_rng(1).random((60, 5)) < .5
    ims = AttributeSet(np.zeros((60, 1, 4, 4), np.uint8), has, 'abcde')
    sampler = AttributeSampler(ims, k_shot=2, n_query=3)
    should = []
    for t in combinations(range(5), 3):
        for signs in product([True, False], repeat=3):
            a,b = (has[:, t] == signs).all(1),(has[:, t] == np.logical_not(signs)).all(1)
            if signs[0] and min(a.sum(), b.sum()) >= 5: should.append((t, {*np.flatnonzero(a)}, {*np.flatnonzero(b)}))
    assert {(tuple(sampler.triples[p]), *map(frozenset, map(np.ndarray.tolist, sampler.classes_of(p)))) for p in range(len(sampler))} == {(t, frozenset(a), frozenset(b)) for t,a,b in should}
    assert 0 < len(sampler) < 40  # some were too small
    pairs = [(a, b) for _,a,b in should]
    for task in sampler.sample(50).tolist(): assert any({*task[0]} <= a and {*task[1]} <= b or {*task[0]} <= b and {*task[1]} <= a for a,b in pairs)


@pytest.mark.parametrize('method', ['protonets', 'oracle-protonets'])
def test_celeba_in_the_commands(tmp_path, monkeypatch, capsys, method):
    "From a folder to an accuracy on tasks of other attributes, two classes at five shots."
    from cactus_nb import cli, stages
    from cactus_nb.runs import read_json
    root,_ = draw_celeba(tmp_path/'celeba', n=120)
    monkeypatch.setitem(stages.datasets, 'celeba', lambda root: celeba(root, size=16))
    how = [] if method.startswith('oracle') else ['--encoder', 'pixels', '--n_clusters', '8', '--n_partitions', '2']
    run = tmp_path/'run'
    cli.cactus_train(['--data', 'celeba', '--root', str(root), '--method', method, '--epochs', '1', '--n_tasks', '4', '--n_test', '4', '--out', str(run), *how])
    row, = read_json(run/'result.json')['rows']
    assert (row['n_way'], row['k_shot'], row['state']) == (2, 5, 'done') and 0 <= row['mean'] <= 100
    cli.cactus_eval(['--run', str(run), '--k_shot', '5', '--n_test', '4'])
    assert all((o['n_way'], o['k_shot']) == (2, 5) for o in read_json(run/'result.json')['rows'])


# The real ones

def there(name): return pytest.mark.skipif(not DATA or not Path(DATA, name).is_dir(), reason=f'no {name} here')

@there('mnist')
def test_real_mnist():
    train,valid,test = mnist(Path(DATA, 'mnist')).published_split()
    assert [len(o) for o in (train, valid, test)] == [55_000, 5_000, 10_000] and test.class_counts()[:3].tolist() == [980, 1135, 1032]
    assert test.y[:5].tolist() == [7, 2, 1, 0, 4] and 30 < train.x[:5000].mean() < 36  # dark, with bright ink

@there('mini-imagenet')
def test_real_mini_imagenet():
    "Everything but the decoding."
    root = Path(DATA, 'mini-imagenet')
    labels = papers._read_csvs(root)
    assert {k: (len(o), len({*o.values()})) for k,o in labels.items()} == dict(train=(38_400, 64), valid=(9_600, 16), test=(12_000, 20))
    sources = papers._sources(root, 'images', list(labels['test']), 'test.csv')
    assert folder_mod.decode_images(sources[:10], (3, 84, 84), n_workers=0).x.std() > 20

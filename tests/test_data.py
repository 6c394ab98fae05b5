"What goes wrong with images and data sets: each case one clear error, and nothing half done left behind."
import hashlib, http.server, io, os, threading, zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cactus_nb.data import sets
from cactus_nb.data.core import ImageSet, image_grid
from cactus_nb.data.sets import data_root, download_file, glyphs, omniglot

PARTS = 'images_background', 'images_evaluation'
DATA = os.getenv('CACTUS_DATA')  # before the tests hide it


def drawing(seed):
    f = io.BytesIO()
    x = np.random.default_rng(seed).integers(0, 2, (105, 105), dtype=np.uint8) * 255
    Image.fromarray(x).convert('1').save(f, 'png')
    return f.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, 'w') as z:
        for name,data in members.items(): z.writestr(name, data)


def members(part): return {f'{part}/Of_{part[7:]}/character0{c}/000{c}_0{k}.png': drawing(10*c + k) for c in (1, 2) for k in (1, 2)}


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    "No test sees or changes what the user has."
    for k in ('CACTUS_CACHE', 'FASTAI_HOME'): monkeypatch.setenv(k, str(tmp_path/k.lower()))
    monkeypatch.delenv('CACTUS_DATA', raising=False)


@pytest.fixture
def root(tmp_path):
    "A tiny Omniglot."
    res = tmp_path/'omniglot'
    res.mkdir()
    for o in PARTS: write_zip(res/f'{o}.zip', members(o))
    return res


@pytest.fixture
def server(tmp_path):
    "A web server on this machine: its folder, its address and what was asked of it."
    folder,asked = tmp_path/'served',[]
    folder.mkdir()
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=str(folder))
        def log_request(self, *args): asked.append(self.path)
        def log_message(self, *args): pass
    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{srv.server_address[1]}/', asked
    srv.shutdown()
    srv.server_close()


# ImageSet

@pytest.mark.parametrize('x, words', [
    (np.zeros((3, 1, 4, 4)), 'multiply by 255 and cast'),
    (np.full((3, 1, 4, 4), 200.), 'bring them to 0..255'),
    (np.ones((3, 1, 4, 4), bool), 'multiply by 255'),
    (np.zeros((3, 1, 4, 4), np.int64), 'bring them to 0..255'),
    (np.zeros((3, 4, 4), np.uint8), 'add a channel axis'),
    (np.zeros((3, 28, 28, 3), np.uint8), 'x.transpose(0, 3, 1, 2)'),
    (np.zeros((3, 28, 28, 1), np.uint8), 'x.transpose(0, 3, 1, 2)'),
    (np.zeros((3, 1, 0, 4), np.uint8), 'none of c, h, w zero'),
    (np.zeros(3, np.uint8), 'must be [n, c, h, w]'),
    ([[1, 2]], 'not list'),
    (None, 'not NoneType'),
])
def test_wrong_pixels(x, words):
    with pytest.raises(ValueError) as e: ImageSet(x)
    assert words in str(e.value)


@pytest.mark.parametrize('kw, words', [
    (dict(y=[0, 1]), 'got [2]'),
    (dict(y=[[0], [1], [0]]), 'got [3, 1]'),
    (dict(y=[0, -1, 0]), 'got -1 in row 1'),
    (dict(y=[.5, 1, 0]), 'got float64'),
    (dict(y=[True, False, True]), 'got bool'),
    (dict(y=[None, 'a', 'b']), 'got object'),
    (dict(y=[0, 1, 2], classes=['a', 'b']), 'needs 3 class names, got 2'),
    (dict(y=['a', 'b', 'c'], classes=['a', 'b']), "the first is 'c'"),
    (dict(y=[0, 1, 0], classes=['a', 'a']), "got 'a' twice"),
    (dict(classes=['a', 'b']), 'give y too'),
    (dict(ids=['a', 'b']), '3 images need 3 ids'),
    (dict(ids=['a', 'b', 'a']), "'a' stands 2 times"),
])
def test_wrong_labels_and_ids(kw, words):
    with pytest.raises(ValueError) as e: ImageSet(np.zeros((3, 1, 4, 4), np.uint8), **kw)
    assert words in str(e.value)


@pytest.mark.parametrize('dtype', [np.uint8, np.int8, np.uint64, np.int32, object, str])
def test_labels_of_any_kind(dtype):
    y = ['b', 'a', 'b'] if dtype in (object, str) else [1, 0, 1]
    ims = ImageSet(np.zeros((3, 1, 4, 4), np.uint8), y=np.array(y, dtype=dtype))
    assert ims.y.tolist() == [1, 0, 1] and ims.y.dtype == np.int64 and ims.n_classes == 2


def test_rows():
    x = np.arange(5, dtype=np.uint8).repeat(16).reshape(5, 1, 4, 4)
    ims = ImageSet(x, y=[0, 1, 0, 1, 2])
    assert [y for _,y in ims] == [0, 1, 0, 1, 2]  # iteration ends
    assert len(ims[[]]) == 0 and len(ims[ims.y == 7]) == 0 and len(ImageSet(x[:0], y=ims.y[:0])) == 0
    assert ims[-1][1] == 2 and ims[np.int64(1)][1] == 1
    for bad in (5, [7], np.zeros(4, bool), 'a'):
        with pytest.raises(IndexError): ims[bad]


def test_empty_classes_are_not_split():
    ims = ImageSet(np.zeros((6, 1, 4, 4), np.uint8), y=[0, 0, 1, 1, 2, 2])[:4]
    assert ims.n_classes == 3
    with pytest.raises(ValueError, match='2 have images'): ims.split_classes(1, 1, 1, seed=0)
    with pytest.raises(ValueError, match='none below 0'): ims.split_classes(-1, 1, 1, seed=0)
    assert [len(o) for o in ims.split_classes(1, 0, 1, seed=0)] == [2, 0, 2]


def test_memory_map_is_not_copied(tmp_path):
    np.save(tmp_path/'x.npy', np.zeros((8, 1, 4, 4), np.uint8))
    x = np.load(tmp_path/'x.npy', mmap_mode='r')
    ims = ImageSet(x)
    assert ims.x is x and isinstance(ims[2:6].x, np.memmap)
    assert ims.fingerprint == ImageSet(np.array(x)).fingerprint


@pytest.mark.parametrize('keep', [0, 10, 200, -1])
def test_truncated_file(tmp_path, keep):
    f = tmp_path/'ims.npz'
    ImageSet(np.zeros((8, 1, 4, 4), np.uint8)).save(f)
    f.write_bytes(f.read_bytes()[:keep])
    with pytest.raises(ValueError, match='not a whole ImageSet file'): ImageSet.load(f)


def test_foreign_files(tmp_path):
    np.savez(tmp_path/'other.npz', a=1)
    np.savez(tmp_path/'objects.npz', x=np.array([{}], dtype=object), ids=np.array(['0']), name='')
    for o in ('other', 'objects'):
        with pytest.raises(ValueError, match='not a whole ImageSet file'): ImageSet.load(tmp_path/f'{o}.npz')
    with pytest.raises(FileNotFoundError): ImageSet.load(tmp_path/'none.npz')


def test_odd_names_survive(tmp_path):
    ids = ['ß/ж.png', 'bad\udcff.png']  # the second is a file name that is not UTF-8
    ImageSet(np.zeros((2, 1, 4, 4), np.uint8), ids=ids).save(tmp_path/'a.npz')
    assert ImageSet.load(tmp_path/'a.npz').ids.tolist() == ids


def test_colour_grid(): assert image_grid(np.zeros((5, 3, 4, 6), np.uint8), n_cols=3).shape == (3, 9, 20)


# Places and the cache

def test_data_root(tmp_path, monkeypatch):
    assert data_root('omniglot') == tmp_path/'fastai_home'/'data'/'omniglot'
    assert not (tmp_path/'fastai_home').exists()  # looking makes nothing
    (tmp_path/'mine'/'omniglot').mkdir(parents=True)
    monkeypatch.setenv('CACTUS_DATA', str(tmp_path/'mine'))
    assert data_root('omniglot') == tmp_path/'mine'/'omniglot'
    assert data_root('mnist') == tmp_path/'fastai_home'/'data'/'mnist'
    (tmp_path/'fastai_home').mkdir()
    (tmp_path/'fastai_home'/'config.ini').write_text(f'[DEFAULT]\ndata = {tmp_path}/big_disk\n')
    assert data_root('mnist') == tmp_path/'big_disk'/'mnist'


def test_unwritable_cache(tmp_path, monkeypatch, root):
    (tmp_path/'a_file').write_text('')
    monkeypatch.setenv('CACTUS_CACHE', str(tmp_path/'a_file'/'cache'))  # cannot be a folder, not even for root
    assert len(omniglot(root)) == 8 and len(omniglot(root)) == 8


def test_cache_follows_the_source(tmp_path, root):
    a = omniglot(root).fingerprint
    assert omniglot(root).fingerprint == a and len(list((tmp_path/'cactus_cache').iterdir())) == 1
    assert omniglot(root, size=14).shape == (1, 14, 14)
    more = {'images_background/Of_background/character09/0009_01.png': drawing(9)}
    write_zip(root/'images_background.zip', members('images_background') | more)
    assert len(omniglot(root)) == 9


# Downloads

def test_download(server, tmp_path):
    folder,url,asked = server
    (folder/'a.zip').write_bytes(b'abc'*100_000)
    md5 = hashlib.md5(b'abc'*100_000).hexdigest()
    assert download_file(url+'a.zip', tmp_path/'to'/'a.zip', md5).read_bytes() == (folder/'a.zip').read_bytes()
    assert len(asked) == 1


@pytest.mark.parametrize('name, words', [('a.zip', 'should be 0000'), ('none.zip', '404')])
def test_download_fails(server, tmp_path, name, words):
    folder,url,asked = server
    (folder/'a.zip').write_bytes(b'abc')
    with pytest.raises(ConnectionError) as e: download_file(url+name, tmp_path/'to'/name, '0'*32, wait=0)
    for o in (words, url+name, 'by hand', str(tmp_path/'to'/name)): assert o in str(e.value)
    assert list((tmp_path/'to').iterdir() if (tmp_path/'to').exists() else []) == []
    assert asked == ['/'+name]*3


class Breaks(http.server.SimpleHTTPRequestHandler):
    "A server whose first answer breaks off in the middle, and that gives the rest of a file where it is asked for it"
    asked, ranges, body = [], True, bytes(range(256))*4000
    def log_message(self, *args): pass
    def do_GET(self):
        self.asked.append(self.headers.get('Range'))
        start = int(self.headers['Range'][6:-1]) if self.ranges and self.headers.get('Range') else 0
        if start >= len(self.body): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', len(self.body) - start); self.end_headers()
        self.wfile.write(self.body[start:300_000 if len(self.asked) == 1 else None])


@pytest.mark.parametrize('ranges', [True, False])
def test_download_goes_on(tmp_path, ranges):
    "A broken download keeps what came, and asks for the rest; a server that knows no parts sends the whole again."
    handler = type('Handler', (Breaks,), dict(asked=[], ranges=ranges))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        url, md5 = f'http://127.0.0.1:{s.server_port}/a.zip', hashlib.md5(Breaks.body).hexdigest()
        with pytest.raises(ConnectionError, match='300,000 of 1,024,000 bytes'): download_file(url, tmp_path/'a.zip', md5, n_tries=1)
        assert [o.name for o in tmp_path.iterdir() if o.is_file()] == ['a.zip.part']
        assert download_file(url, tmp_path/'a.zip', md5).read_bytes() == Breaks.body
        assert handler.asked == [None, 'bytes=300000-'] and not (tmp_path/'a.zip.part').exists()
        (tmp_path/'b.zip.part').write_bytes(bytes(2_000_000)) # longer than the file, and another
        assert download_file(url, tmp_path/'b.zip', md5, wait=0).read_bytes() == Breaks.body
        s.shutdown()


def test_download_needs_room(server, tmp_path, monkeypatch):
    folder,url,asked = server
    (folder/'a.zip').write_bytes(bytes(3*2**20))
    monkeypatch.setattr('shutil.disk_usage', lambda p: type('Disk', (), dict(free=2**20)))
    with pytest.raises(ConnectionError, match='3 MiB are still to come and .* has 1 MiB free: make room'): download_file(url+'a.zip', tmp_path/'to'/'a.zip', '0'*32)
    assert len(asked) == 1 and not [*(tmp_path/'to').iterdir()]


def test_unreachable(tmp_path):
    with pytest.raises(ConnectionError, match='2 tries'):
        download_file('http://127.0.0.1:9/a.zip', tmp_path/'a.zip', '0'*32, n_tries=2, wait=0)
    assert not (tmp_path/'a.zip').exists()


def test_omniglot_is_downloaded(server, tmp_path, monkeypatch):
    folder,url,asked = server
    for o in PARTS: write_zip(folder/f'{o}.zip', members(o))
    monkeypatch.setattr(sets, '_omniglot_url', url)
    monkeypatch.setattr(sets, '_omniglot_md5', {o: hashlib.md5((folder/f'{o}.zip').read_bytes()).hexdigest() for o in PARTS})
    assert len(omniglot()) == 8
    assert sorted(o.name for o in data_root('omniglot').iterdir()) == [f'{o}.zip' for o in PARTS]
    n = len(asked)
    assert len(omniglot(size=20)) == 8 and len(asked) == n  # what is there is not asked for again


# Omniglot

def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no folder'): omniglot(tmp_path/'none')
    with pytest.raises(FileNotFoundError, match='neither images_background.zip'): omniglot(tmp_path)


@pytest.mark.parametrize('name', ['../x.png', '/x.png', 'images_background/../../x.png', '..\\x.png', 'C:/x.png', 'C:\\x.png'])
def test_member_outside(root, name):
    write_zip(root/'images_background.zip', members('images_background') | {name: drawing(0)})
    with pytest.raises(ValueError) as e: omniglot(root)
    assert 'points outside' in str(e.value) and repr(name) in str(e.value) and 'images_background.zip' in str(e.value)
    assert not (root/'x.png').exists() and not (root.parent/'x.png').exists()


def test_truncated_zip(root):
    z = root/'images_evaluation.zip'
    z.write_bytes(z.read_bytes()[:-100])
    with pytest.raises(ValueError, match='images_evaluation.zip is not a whole zip'): omniglot(root)


def test_corrupt_member(root):
    good,name = members('images_background'),'images_background/Of_background/character01/0001_02.png'
    for bad in (b'', b'no picture', good[name][:-40]):
        write_zip(root/'images_background.zip', good | {name: bad})
        with pytest.raises(ValueError, match=f'{name} cannot be read'): omniglot(root)


def test_flipped_byte(root):
    z = root/'images_background.zip'
    data = bytearray(z.read_bytes())
    data[data.index(b'IDAT') + 50] ^= 255
    z.write_bytes(data)
    with pytest.raises(ValueError, match='cannot be read'): omniglot(root)


def test_no_characters(root):
    write_zip(root/'images_background.zip', {'images_background/readme.txt': b'', 'images_background/Of/note.png': drawing(0)})
    with pytest.raises(ValueError, match='holds no images_background/<Alphabet>/characterNN'): omniglot(root)


def test_litter_is_passed_over(root):
    folder = 'images_background/Of_background/character01'
    litter = [f'__MACOSX/{folder}/._0001_01.png', f'{folder}/.DS_Store', f'{folder}/._0001_01.png']
    write_zip(root/'images_background.zip', members('images_background') | dict.fromkeys(litter, b'x'))
    assert len(omniglot(root)) == 8


@pytest.mark.parametrize('size', [0, -1, 106, 28., '28', True, None])
def test_wrong_size(root, size):
    with pytest.raises(ValueError, match='must be a whole number from'): omniglot(root, size=size)
    with pytest.raises(ValueError, match='must be a whole number from'): glyphs(size=size)


@pytest.mark.once
@pytest.mark.skipif(not DATA or not Path(DATA, 'omniglot').is_dir(), reason='no Omniglot here')
def test_real_omniglot():
    ims = omniglot(Path(DATA, 'omniglot'))
    assert len(ims) == 32460 and set(ims.class_counts()) == {20} and len({o.split('/')[0] for o in ims.classes}) == 50
    assert [len(o) for o in ims.split_classes(1100, 100, 423, seed=0)] == [22000, 2000, 8460]
    parts = [ims.split_classes(1100, 100, 423, seed=s) for s in range(3)]
    shared = [len({*a[1].classes} & {*b[2].classes}) for a in parts for b in parts if a is not b] # what the page of the rounds says of its seeds
    assert (min(shared), max(shared)) == (21, 30)

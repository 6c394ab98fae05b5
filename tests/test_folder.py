"A folder of anyone's images: files of every kind, what is wrong with them, and work that is cut short."
import errno, io, json, os, shutil, signal, subprocess, sys, time, warnings, zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fastcore.foundation import L
from PIL import Image, ImageDraw

from cactus_nb.data import folder as mod
from cactus_nb.data.core import ImageSet
from cactus_nb.data.folder import as_images, decode_image, decode_images, from_folder

posix = pytest.mark.skipif(os.name != 'posix', reason='needs names and links as POSIX has them')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "No test sees or changes what the user has."
    monkeypatch.setenv('CACTUS_CACHE', str(tmp_path/'cache'))


@pytest.fixture
def home(tmp_path):
    (tmp_path/'photos').mkdir()
    return tmp_path/'photos'


@pytest.fixture
def decoded(monkeypatch):
    "How often each file was decoded in this process."
    count,real = Counter(),mod._decode_row
    def counted(file, member, *args, **kwargs):
        count[member or Path(file).name] += 1
        return real(file, member, *args, **kwargs)
    monkeypatch.setattr(mod, '_decode_row', counted)
    return count


def noise(seed, size=(40, 30), mode='RGB'): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)

def fill(home, n, start=0):
    for i in range(start, start+n): noise(i).save(home/f'{i:04d}.png')

def read(home, size=8, **kwargs):
    "The set, its warnings as one text."
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        ims = from_folder(home, size=size, **kwargs)
    return ims, ' | '.join(str(o.message) for o in w)

def kept(tmp_path): return sorted((tmp_path/'cache').glob('folder-*/*'))

def pixel(im, path, mode='RGB', **kwargs):
    "What one pixel in the middle of `im` becomes when it is saved to `path` and read."
    im.save(path, **kwargs)
    return decode_image(path, (3 if mode == 'RGB' else 1, 1, 1))[:,0,0].tolist()


# Pixels

@pytest.mark.parametrize('suffix', ['jpg', 'png', 'gif', 'bmp', 'webp', 'tiff', 'ppm', 'tga', 'ico', 'pcx', 'jp2'])
def test_formats(home, suffix):
    Image.new('RGB', (32, 32), (200, 100, 50)).save(home/f'a.{suffix.upper()}')
    ims,words = read(home)
    assert np.abs(ims.x[0,:,4,4].astype(int) - [200, 100, 50]).max() <= 4 and not words


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'I;16', 'F'])
def test_modes(home, mode, channels):
    suffix = dict(YCbCr='tiff', F='tiff', CMYK='tiff', I='tiff').get(mode, 'png')
    im = Image.new('L', (20, 20), 255)
    deep = {'I': np.int32, 'I;16': np.uint16}
    im = Image.fromarray(np.full((20, 20), 65535, deep[mode])) if mode in deep else im.convert('RGB').convert(mode) if mode in ('CMYK', 'YCbCr') else im.convert(mode)
    assert im.mode == mode
    im.save(home/f'a.{suffix}')
    ims,_ = read(home, channels=channels)
    assert ims.shape == (channels, 8, 8) and ims.x.min() >= 254


def test_16_bits(home):
    v = np.array([0, 1, 128, 129, 257, 4095, 32768, 40000, 65534, 65535])
    should = np.round(v/257).tolist()
    for dtype,suffix in ((np.uint16, 'png'), (np.uint16, 'tiff'), ('>u2', 'tiff'), (np.int32, 'tiff')):
        path = home/f'a.{suffix}'
        Image.fromarray(v[None].astype(dtype)).save(path)
        assert decode_image(path, (1, 1, len(v)))[0,0].tolist() == should
        assert decode_image(path, (3, 1, len(v)))[:,0].tolist() == [should]*3
    (home/'a.pgm').write_bytes(b'P5 10 1 65535\n' + v.astype('>u2').tobytes())
    assert decode_image(home/'a.pgm', (1, 1, 10))[0,0].tolist() == should


@pytest.mark.parametrize('values, words', [([0, 70000], 'from 0 to 70000, beyond 0..65535'), ([-5, 3], 'from -5 to 3'), ([0., 256.], 'beyond 0..255'),
                                           ([-.5, 1.], 'from -0.5 to 1'), ([np.nan, 1.], 'nan'), ([0., np.inf], 'inf')])
def test_values_of_no_known_range(home, values, words):
    a = np.array([values])
    Image.fromarray(a.astype(np.int32 if a.dtype.kind == 'i' else np.float32)).save(home/'a.tiff')
    with pytest.raises(ValueError) as e: from_folder(home)
    assert words in str(e.value) and 'a.tiff' in str(e.value)


def test_transparency(home):
    red = Image.new('RGBA', (4, 4), (255, 0, 0, 0))
    assert pixel(red, home/'a.png') == [255, 255, 255]  # what is hidden is not shown
    red.putalpha(51)
    assert pixel(red, home/'b.png') == [255, 204, 204]
    assert pixel(Image.new('LA', (4, 4), (0, 51)), home/'c.png', 'L') == [204]
    grey = Image.new('P', (4, 4))
    grey.putpalette([10, 20, 30, 0, 0, 0])
    assert pixel(grey, home/'d.png') == [10, 20, 30]
    assert pixel(grey, home/'e.png', transparency=0) == [255]*3
    assert pixel(grey, home/'f.png', transparency=bytes([51])) == [206, 208, 210]
    assert pixel(Image.new('RGB', (4, 4), (1, 2, 3)), home/'g.png', transparency=(1, 2, 3)) == [255]*3
    assert pixel(Image.new('L', (4, 4), 7), home/'h.png', 'L', transparency=7) == [255]
    assert decode_image(home/'a.png', (3, 2, 2), background=0).max() == 0


def test_orientation(home):
    "Each of the eight ways to hold a camera gives the same picture."
    right = Image.new('RGB', (12, 8))
    right.putpixel((0, 0), (255, 255, 255))
    T = Image.Transpose
    stored = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    for k,how in stored.items():
        exif = Image.Exif()
        exif[0x0112] = k
        (right if how is None else right.transpose(how)).save(home/'a.png', exif=exif)
        assert (decode_image(home/'a.png', (3, 8, 12)) == np.asarray(right).transpose(2, 0, 1)).all(), k
    right.save(home/'b.jpg', exif=b'Exif\0\0nonsense')
    assert decode_image(home/'b.jpg', (3, 8, 12)).shape == (3, 8, 12)


def test_fit(home):
    im = Image.new('L', (90, 30))
    im.paste(255, (30, 0, 60, 30))
    im.save(home/'a.png')
    assert decode_image(home/'a.png', (1, 10, 10))[:,:,1:-1].min() == 255
    assert decode_image(home/'a.png', (1, 10, 10), 'stretch')[0,5,[0, 5, 9]].tolist() == [0, 255, 0]
    assert decode_image(home/'a.png', (1, 9, 9), 'pad')[0,[0, 4, 8],4].tolist() == [255, 255, 255]
    assert decode_image(home/'a.png', (1, 9, 9), 'pad', background=7)[0,[0, 4, 8]][:,0].tolist() == [7, 0, 7]


def test_average(home):
    "Made smaller, fine stripes become grey."
    x = np.zeros((1000, 1000), np.uint8)
    x[:,::2] = 200
    Image.fromarray(x).save(home/'a.png')
    assert np.abs(decode_image(home/'a.png', (1, 20, 20)).astype(int) - 100).max() <= 1


@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_draft(home, mode):
    "A JPEG that is decoded at a fraction of its size is nearly what the whole one gives."
    im = Image.new('RGB', (1600, 1203), (30, 60, 90))
    ImageDraw.Draw(im).ellipse((300, 200, 900, 1100), fill=(220, 180, 20))
    im.convert(mode).save(home/'a.jpg', quality=95)
    Image.open(home/'a.jpg').convert('RGB').save(home/'b.png')
    for c in (1, 3):
        a,b = (decode_image(home/o, (c, 50, 50)).astype(int) for o in ('a.jpg', 'b.png'))
        assert np.abs(a - b).mean() < 2


@pytest.mark.parametrize('size', [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
def test_tiny(home, size, fit):
    Image.new('RGB', size, (9, 8, 7)).save(home/'a.png')
    x = decode_image(home/'a.png', (3, 20, 20), fit, background=9)
    assert [9, 8, 7] in x.reshape(3, -1).T.tolist() and x.shape == (3, 20, 20)


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp', 'tiff'])
def test_first_of_several(home, suffix):
    frames = [Image.new('RGB', (16, 16), c) for c in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(home/f'a.{suffix}', save_all=True, append_images=frames[1:], **(dict(lossless=True) if suffix == 'webp' else {}))
    assert read(home)[0].x[0,:,4,4].tolist() == [255, 0, 0]


def test_open_file(home):
    noise(0).save(home/'a.png')
    with open(home/'a.png', 'rb') as f: assert (decode_image(f, (3, 8, 8)) == decode_image(home/'a.png', (3, 8, 8))).all()
    with pytest.raises(FileNotFoundError): decode_image(home/'b.png', (3, 8, 8))


def test_pillow_is_left_as_it_was(home):
    fill(home, 1)
    before = Image.MAX_IMAGE_PIXELS
    from_folder(home, size=8, max_pixels=5000)
    with pytest.raises(ValueError): from_folder(home, max_pixels=500)
    assert Image.MAX_IMAGE_PIXELS == before


# What cannot be read

def png(n): f = io.BytesIO(); noise(n).save(f, 'png'); return f.getvalue()
def jpeg(n): f = io.BytesIO(); noise(n, (200, 200)).save(f, 'jpeg'); return f.getvalue()

BROKEN = dict(empty=b'', text=b'no picture', head=png(0)[:20], cut=png(0)[:-200], cut_jpeg=jpeg(0)[:-2000], eps=b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')

@pytest.mark.parametrize('data', BROKEN.values(), ids=BROKEN.keys())
def test_broken(home, tmp_path, data, decoded):
    fill(home, 5)
    bad = home/('bad.jpg' if b'JFIF' in data else 'bad.png')
    bad.write_bytes(data)
    with pytest.raises(ValueError, match='1 of 6 images cannot be read') as e: from_folder(home, size=8)
    assert str(bad) in str(e.value) and "on_error='skip'" in str(e.value)
    ims,words = read(home, on_error='skip')
    assert ims.ids.tolist() == [f'{i:04d}.png' for i in range(5)] and str(bad) in words and 'left out' in words
    bad.unlink()
    assert read(home)[0].fingerprint == ims.fingerprint
    assert decoded == {bad.name: 2} | {f'{i:04d}.png': 1 for i in range(5)}  # nothing good is decoded twice
    assert [o.suffix for o in kept(tmp_path)] == ['.log', '.npy']  # nor kept twice


def test_many_broken(home):
    fill(home, 2)
    for i in range(9): (home/f'x{i}.jpg').write_bytes(b'x')
    with pytest.raises(ValueError) as e: from_folder(home)
    assert '9 of 11 images' in str(e.value) and 'x4.jpg' in str(e.value) and 'x5.jpg' not in str(e.value) and len(str(e.value)) < 1000


def test_all_broken(home):
    (home/'a.png').write_bytes(b'')
    with pytest.raises(ValueError, match='None is left'): from_folder(home, on_error='skip')


def test_skipped_in_the_middle(home, tmp_path, decoded):
    "Rows stay with their names when a file becomes readable that was left out."
    fill(home, 6)
    good = (home/'0002.png').read_bytes()
    (home/'0002.png').write_bytes(b'x'*10)
    first,_ = read(home, on_error='skip')
    assert first.ids.tolist() == [f'000{i}.png' for i in (0, 1, 3, 4, 5)]
    before = [(o, o.stat().st_mtime_ns) for o in kept(tmp_path)]
    again,words = read(home, on_error='skip')
    assert again.fingerprint == first.fingerprint and 'left out' in words
    assert [(o, o.stat().st_mtime_ns) for o in kept(tmp_path)] == before  # nothing new, nothing written
    (home/'0002.png').write_bytes(good)
    whole,words = read(home)
    assert len(whole) == 6 and not words and whole[whole.ids != '0002.png'].fingerprint == first.fingerprint
    assert decoded['0002.png'] == 3 and decoded['0003.png'] == 1


def test_readable_later_with_the_same_stamp(home, decoded, monkeypatch):
    "A file that was forbidden, or needed a plugin, has not changed when it can be read."
    fill(home, 4)
    real = mod.decode_image
    def forbidden(f, *args, **kwargs):
        if '0001' in f.name: raise PermissionError(errno.EACCES, 'Permission denied')
        return real(f, *args, **kwargs)
    monkeypatch.setattr(mod, 'decode_image', forbidden)
    ims,words = read(home, on_error='skip')
    assert len(ims) == 3 and 'Permission denied' in words
    monkeypatch.setattr(mod, 'decode_image', real)
    ims,words = read(home, on_error='skip')
    assert len(ims) == 4 and not words and decoded['0000.png'] == 1
    assert (ims.x[1] == decode_image(home/'0001.png', (3, 8, 8))).all() and (ims.x[3] == decode_image(home/'0003.png', (3, 8, 8))).all()


def test_huge(home, decoded):
    "A file of a few bytes that claims billions of pixels."
    import struct, zlib
    def chunk(k, d): return struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k+d))
    (home/'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)) + chunk(b'IDAT', b'') + chunk(b'IEND', b''))
    fill(home, 1)
    with pytest.raises(ValueError, match=r'bomb.png \(more than max_pixels\)'): from_folder(home)
    noise(0, (400, 300)).save(home/'bomb.png')
    with pytest.raises(ValueError, match='more than max_pixels'): from_folder(home, max_pixels=119_999)
    assert len(from_folder(home, max_pixels=120_000)) == 2 and decoded['0000.png'] == 1  # another limit, the same pixels


# The folder

def test_nothing_there(home, tmp_path):
    with pytest.raises(ValueError, match='holds no images$'): from_folder(home)
    (home/'a.txt').write_text('')
    (home/'.hidden.png').write_bytes(png(0))
    (home/'.git').mkdir()
    (home/'.git'/'a.png').write_bytes(png(0))
    with pytest.raises(ValueError, match=r'holds no images, but 1 other file\(s\) \(.txt: 1\)'): from_folder(home)
    with pytest.raises(FileNotFoundError, match='there is no folder'): from_folder(home/'none')
    with pytest.raises(NotADirectoryError, match='is a file'): from_folder(home/'a.txt')
    assert not (tmp_path/'cache').exists()


@pytest.mark.parametrize('kw, words', [
    (dict(size=0), 'size=0'), (dict(size=8.), 'size=8.0'), (dict(size=True), 'size=True'), (dict(channels=2), 'channels=2'), (dict(fit='fill'), "fit='fill'"),
    (dict(background=256), 'background=256'), (dict(max_pixels=0), 'max_pixels=0'), (dict(on_error='no'), "on_error='no'"), (dict(n_workers=-1), 'n_workers=-1'),
    (dict(n_workers=1.5), 'n_workers=1.5')])
def test_wrong_options(home, kw, words):
    fill(home, 1)
    with pytest.raises(ValueError, match=words): from_folder(home, **kw)
    with pytest.raises(TypeError): from_folder(home, sise=3)


def test_others_are_counted(home):
    fill(home, 1)
    for o in ('a.txt', 'b.TXT', 'c.heic', 'noext', 'd.eps', 'e.mpg'): (home/o).write_bytes(b'x')
    words = read(home)[1]
    assert 'passed over 6 other file(s)' in words and '.txt: 2' in words and '.heic: 1' in words and 'no suffix: 1' in words


def test_deep(home):
    at = home
    for i in range(60): at = at/f'{i}'
    at.mkdir(parents=True)
    noise(0).save(at/'a.png')
    ims,_ = read(home)
    assert ims.ids[0] == '/'.join(map(str, range(60))) + '/a.png' and ims.y is None


@posix
def test_names_in_any_script(home, tmp_path):
    names = ['日本/猫.png', 'العربية/قط.png', 'Ελλάς/γάτα.png', 'emoji/🐈.png', "quote'\" \n/new\nline.png", 'umlaut/A\u0308.png', 'umlaut/\u00c4.png']
    for i,o in enumerate(names):
        (home/o).parent.mkdir(exist_ok=True)
        noise(i).save(home/o)
    odd = os.fsdecode(b'latin\xe4/caf\xe9.png')
    try:
        (home/odd).parent.mkdir()
        noise(9).save(home/odd)
        names.append(odd)
    except (OSError, UnicodeError): pass  # a file system that has UTF-8 only
    ims,_ = read(home)
    assert ims.ids.tolist() == sorted(names) and set(ims.classes) == {o.split('/')[0] for o in names}
    assert ims.classes[ims[ims.ids.tolist().index(names[-1])][1]] == names[-1].split('/')[0]
    for o in names: assert (home/o).is_file()
    ims.save(tmp_path/'a.npz')
    assert type(ims).load(tmp_path/'a.npz').ids.tolist() == ims.ids.tolist()
    assert read(home)[0].fingerprint == ims.fingerprint
    with pytest.raises(ValueError): from_folder(home, labels={})
    (home/odd).write_bytes(b'x') if odd in names else None
    with pytest.raises(ValueError) if odd in names else warnings.catch_warnings(): from_folder(home, size=8)


@posix
def test_links(home, tmp_path, decoded):
    fill(home, 2)
    outside = tmp_path/'outside'
    outside.mkdir()
    noise(7).save(outside/'secret.png')
    (home/'out').symlink_to(outside)
    (home/'file.png').symlink_to(outside/'secret.png')
    (home/'dangling.png').symlink_to(tmp_path/'nothing.png')
    (home/'self.png').symlink_to('self.png')
    ims,words = read(home)
    assert ims.ids.tolist() == ['0000.png', '0001.png'] and '4 symbolic link(s), which follow_links=True follows' in words and not decoded['secret.png']
    ims,words = read(home, follow_links=True, labels=False)
    assert ims.ids.tolist() == ['0000.png', '0001.png', 'file.png', 'out/secret.png'] and '2 symbolic link(s)' in words and 'same pixels' in words
    os.symlink(home, tmp_path/'door')
    assert len(read(tmp_path/'door')[0]) == 2  # the folder itself may be reached through a link


@posix
def test_link_loop(home):
    (home/'a'/'b').mkdir(parents=True)
    noise(0).save(home/'a'/'b'/'x.png')
    (home/'a'/'b'/'up').symlink_to(home)
    (home/'a'/'again').symlink_to(home/'a'/'b')
    (home/'here').symlink_to('.')
    for o in range(2): assert read(home, follow_links=True)[0].ids.tolist() == ['a/b/x.png']
    assert len(read(home)[0]) == 1


@posix
def test_no_regular_file(home):
    fill(home, 1)
    os.mkfifo(home/'pipe.png')
    (home/'folder.png').mkdir()
    assert len(read(home)[0]) == 1


# Labels

def tree(home, names):
    for i,o in enumerate(names):
        (home/o).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(home/o)

def test_labels_by_folder(home):
    tree(home, ['cat/1.png', 'cat/2.png', 'dog/1.png', 'dog/old/1.png'])
    ims,_ = read(home)
    assert ims.classes == ['cat', 'dog', 'dog/old'] and ims.class_counts().tolist() == [2, 1, 1]  # one image in a class is allowed
    assert read(home, labels=False)[0].y is None
    assert ims.unlabelled().y is None
    assert read(home/'dog'/'old')[0].y is None
    assert read(home/'dog'/'old')[0].name == 'old'
    noise(9).save(home/'stray.png')
    ims,words = read(home)
    assert ims.y is None and '1 of 5 images lie in no sub-folder, such as stray.png, so sub-folders are not taken for labels' in words
    with pytest.raises(ValueError, match='such as stray.png'): from_folder(home, labels=True)


def test_labels_wanted(home):
    fill(home, 3)
    assert read(home)[0].y is None
    with pytest.raises(ValueError, match='3 of 3 images lie in no sub-folder'): from_folder(home, labels=True)
    (home/'only').mkdir()
    for o in home.glob('*.png'): o.rename(home/'only'/o.name)
    assert read(home)[0].y is None and read(home, labels=True)[0].classes == ['only']


def test_labels_of_what_is_left(home):
    "A class whose images cannot be read is not there; the others keep their numbers and names together."
    tree(home, ['a/1.png', 'b/1.png', 'c/1.png', 'c/2.png'])
    (home/'b'/'1.png').write_bytes(b'x')
    ims,_ = read(home, on_error='skip')
    assert ims.classes == ['a', 'c'] and [ims.classes[i] for i in ims.y] == ['a', 'c', 'c']


def test_labels_given(home, tmp_path):
    fill(home, 3)
    given = {'0000.png': 'b', Path('0001.png'): 'a', '0002.png': 7}
    ims,_ = read(home, labels=given)
    assert ims.classes == ['7', 'a', 'b'] and ims.y.tolist() == [2, 1, 0]
    f = tmp_path/'y.csv'
    f.write_text('\ufefffilename,label\r\n0001.png,"a, b"\r\n\r\n0000.png,b\r\n0002.png,ü\r\n', encoding='utf8')
    for o in (f, str(f)): assert [ims.classes[i] for ims in [read(home, labels=o)[0]] for i in ims.y] == ['b', 'a, b', 'ü']


@pytest.mark.parametrize('text, words', [
    ('0000.png,a\n', 'the first line must be filename,label'), ('', 'the first line must be'), ('filename,label\n0000.png\n', 'a line must be a name and a label'),
    ('filename,label\n0000.png,a\n0000.png,b\n', "'0000.png' stands there more than once"),
    ('filename,label\n0000.png,a\nother.png,b\n', '1 image(s) have no label: 0001.png; 1 label(s) have no image: other.png')])
def test_labels_do_not_fit(home, tmp_path, decoded, text, words):
    fill(home, 2)
    (tmp_path/'y.csv').write_text(text)
    with pytest.raises(ValueError) as e: from_folder(home, labels=tmp_path/'y.csv')
    assert words in str(e.value) and not decoded
    with pytest.raises(FileNotFoundError): from_folder(home, labels=tmp_path/'none.csv')


def test_labels_do_not_change_pixels(home, decoded):
    tree(home, ['a/1.png', 'b/1.png'])
    assert read(home)[0].fingerprint == read(home, labels=False)[0].fingerprint and decoded['1.png'] == 2


def test_copies(home):
    fill(home, 3)
    shutil.copy(home/'0001.png', home/'copy.png')
    noise(2).save(home/'other.bmp')
    ims,words = read(home)
    assert len(ims) == 5 and '2 of 5 images show the same pixels as another one' in words and '0001.png and copy.png' in words


# What is kept

def test_kept(home, tmp_path, decoded):
    fill(home, 5)
    a = from_folder(home, size=8)
    assert isinstance(a.x, np.memmap) and len(kept(tmp_path)) == 2
    assert from_folder(home, size=8).fingerprint == a.fingerprint and set(decoded.values()) == {1}
    assert from_folder(home, size=9).shape == (3, 9, 9) and set(decoded.values()) == {2} and len(kept(tmp_path)) == 4
    b = from_folder(home, size=8, cache=tmp_path/'elsewhere')
    assert b.fingerprint == a.fingerprint and (tmp_path/'elsewhere').is_dir()
    n = sum(decoded.values())
    c = from_folder(home, size=8, cache=False)
    assert not isinstance(c.x, np.memmap) and c.fingerprint == a.fingerprint and sum(decoded.values()) == n + 5
    a.x[0] = 0  # in memory only
    assert from_folder(home, size=8).fingerprint == b.fingerprint


def test_only_what_changed_is_decoded(home, tmp_path, decoded):
    fill(home, 200)
    first = from_folder(home, size=8)
    (home/'0003.png').unlink()
    noise(999).save(home/'0005.png')
    noise(1000).save(home/'0000a.png')
    (home/'0007.png').rename(home/'zzz.png')
    ims,_ = read(home)
    assert sum(decoded.values()) == 203 and decoded['0005.png'] == 2 and len(kept(tmp_path)) == 2
    for i,o in enumerate(ims.ids): assert (ims.x[i] == decode_image(home/o, (3, 8, 8))).all()
    assert (first.x[3] == 0).sum() < 100  # what was mapped before is still there


def test_foreign_files_stay(home, tmp_path):
    fill(home, 3)
    names = ['mine.npy', 'notes.log', '0123456789abcdef.txt', '0123456789abcdef.npy']
    for o in names: (tmp_path/o).write_bytes(b'x')
    for n in (2, 3): decode_images([home/f'{i:04d}.png' for i in range(n)], (3, 8, 8), tmp_path)
    assert {o.name for o in tmp_path.iterdir() if o.is_file()} >= set(names[:3])
    assert len([o for o in tmp_path.iterdir() if o.is_file()]) == 5


@pytest.mark.parametrize('suffix', ['.npy', '.log'])
@pytest.mark.parametrize('keep', [0, 60, -50])
def test_damaged_cache(home, tmp_path, suffix, keep):
    fill(home, 70)
    a = from_folder(home, size=8)
    print_ = a.fingerprint
    f = next(o for o in kept(tmp_path) if o.suffix == suffix)
    f.write_bytes(f.read_bytes()[:keep])
    assert from_folder(home, size=8).fingerprint == print_
    assert from_folder(home, size=8).fingerprint == print_


def test_changed_pixels_in_an_unfinished_file(home, tmp_path, decoded):
    "What a dying machine did not write is found by its digest."
    fill(home, 150)
    (home/'x.png').write_bytes(b'')
    with pytest.raises(ValueError): from_folder(home, size=8)
    part = next(o for o in kept(tmp_path) if o.suffix == '.part')
    data = bytearray(part.read_bytes())
    data[128:128+192] = bytes(192)
    part.write_bytes(data)
    ims,_ = read(home, on_error='skip')
    assert decoded['0000.png'] == 2 and decoded['0001.png'] == 1
    assert ims.fingerprint == read(home, on_error='skip', cache=False)[0].fingerprint


def test_read_only_cache(home, tmp_path, monkeypatch):
    fill(home, 3)
    (tmp_path/'a_file').write_text('')
    monkeypatch.setenv('CACTUS_CACHE', str(tmp_path/'a_file'/'cache'))  # cannot be a folder, not even for root
    ims,words = read(home)
    assert len(ims) == 3 and 'cannot be written' in words and 'kept in memory' in words
    monkeypatch.setattr(mod.np, 'prod', lambda o: 2**30)  # as if they were large
    with pytest.raises(OSError, match='3.0 GiB of pixels are too many to keep in memory'): from_folder(home)


def test_full_disk_before(home, tmp_path, monkeypatch):
    fill(home, 3)
    monkeypatch.setattr(mod.shutil, 'disk_usage', lambda o: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match='no space left for') as e: from_folder(home)
    assert e.value.errno == errno.ENOSPC and 'what was there is kept' in str(e.value)


def test_full_disk_in_the_middle(home, tmp_path, monkeypatch, decoded):
    fill(home, 100)
    old = from_folder(home, size=8).fingerprint
    fill(home, 100, start=100)
    real,n = mod._DiskRows._write,[0]
    def full(self, row, x):
        n[0] += 1
        if n[0] > 170: raise OSError(errno.ENOSPC, 'No space left on device')
        real(self, row, x)
    monkeypatch.setattr(mod._DiskRows, '_write', full)
    with pytest.raises(OSError, match='no space left for'): from_folder(home, size=8)
    assert len([o for o in kept(tmp_path) if o.suffix == '.npy']) == 1  # what stood there stays
    monkeypatch.setattr(mod._DiskRows, '_write', real)
    ims = from_folder(home, size=8)
    assert len(ims) == 200 and ims[:100].fingerprint == old and len(kept(tmp_path)) == 2
    assert max(decoded.values()) == 2 and sum(decoded.values()) < 200 + 64


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_full_device(home, tmp_path):
    fill(home, 3)
    from_folder(home, size=8, on_error='skip')
    folder = kept(tmp_path)[0].parent
    for o in folder.iterdir(): o.unlink()
    rows = mod._listing([home/f'{i:04d}.png' for i in range(3)])
    store = mod._DiskRows(folder, rows, (3, 8, 8), {})
    store.close()
    store.f = open('/dev/full', 'wb', buffering=0)
    with pytest.raises(OSError) as e, mod._clear_when_full(folder, rows, (3, 8, 8)): store.put([(0, bytes(192), 'x')])
    assert e.value.errno == errno.ENOSPC and 'make room' in str(e.value) and store.digests == {}


@pytest.mark.parametrize('how', ['vanish', 'change'])
def test_changes_while_read(home, tmp_path, monkeypatch, decoded, how):
    fill(home, 5)
    real = mod.decode_image
    def meddle(f, *args, **kwargs):
        if '0002' in f.name:
            if how == 'vanish': os.unlink(f.name)
            else: noise(50, (90, 90)).save(f.name)
        return real(f, *args, **kwargs)
    monkeypatch.setattr(mod, 'decode_image', meddle)
    for on_error in ('raise', 'skip'):
        if on_error == 'skip': noise(2).save(home/'0002.png')
        with pytest.raises(OSError, match=r'1 file\(s\) changed or vanished while they were read, the first is .*0002.png: call again'): from_folder(home, size=8, on_error=on_error)
    monkeypatch.setattr(mod, 'decode_image', real)
    ims = from_folder(home, size=8)
    assert len(ims) == (4 if how == 'vanish' else 5) and decoded['0000.png'] == 1
    for i,o in enumerate(ims.ids): assert (ims.x[i] == decode_image(home/o, (3, 8, 8))).all()


def test_vanished_between(home, monkeypatch):
    fill(home, 2)
    monkeypatch.setattr(mod, '_image_names', lambda *a: (['0000.png', 'gone.png'], ''))
    with pytest.raises(OSError, match='gone.png'): from_folder(home, labels=False)


# Processes

def test_processes(home, tmp_path):
    fill(home, 150)
    (home/'x.png').write_bytes(b'x')
    a,_ = read(home, n_workers=0, on_error='skip', cache=tmp_path/'a')
    b,words = read(home, n_workers=2, on_error='skip', cache=tmp_path/'b')
    assert a.fingerprint == b.fingerprint and (a.ids == b.ids).all() and 'x.png' in words
    assert [o.read_bytes() for o in sorted((tmp_path/'a').rglob('*.npy'))] == [o.read_bytes() for o in sorted((tmp_path/'b').rglob('*.npy'))]


def test_zip(home, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for i in range(130): z.writestr(f'in/{i}.png', png(i))
        z.writestr('in/bad.png', b'x')
    sources = [(tmp_path/'a.zip', f'in/{i}.png') for i in range(130)]
    one,two = (decode_images(sources, (3, 8, 8), tmp_path/f'{n}', n_workers=n) for n in (0, 2))
    assert (one.x == two.x).all() and (one.digests == two.digests).all() and (one.x[7] == decode_image(io.BytesIO(png(7)), (3, 8, 8))).all()
    with pytest.raises(ValueError, match=r'a.zip/in/bad.png \(not an image'): decode_images([(tmp_path/'a.zip', 'in/bad.png')], (3, 8, 8))
    with pytest.raises(ValueError, match='no item named'): decode_images([(tmp_path/'a.zip', 'none.png')], (3, 8, 8))
    data = bytearray((tmp_path/'a.zip').read_bytes())
    data[data.index(b'IDAT') + 60] ^= 255
    (tmp_path/'a.zip').write_bytes(data)
    with pytest.raises(ValueError, match=r'in/0.png \(.*CRC'): decode_images(sources, (3, 8, 8))


SCRIPT = '''
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler) # a job in the background has it ignored
from cactus_nb.data import folder
real,out,home,die = folder._decode_row,*sys.argv[1:4]
def slow(file, *args, **kwargs):
    with open(out, 'a') as f: f.write(f'{os.getpid()} {os.path.basename(file)}\\n')
    time.sleep(.02 if die == 'slow' else .004)
    if die == 'worker' and file.endswith('0300.png'): os.kill(os.getpid(), 9)
    return real(file, *args, **kwargs)
folder._decode_row = slow
if __name__ == '__main__': print(folder.from_folder(home, size=8, n_workers=int(sys.argv[4])).fingerprint)
'''

def start(tmp_path, home, out, die='no', n_workers=2, script=SCRIPT):
    (tmp_path/'script.py').write_text(script)
    cmd = [sys.executable, tmp_path/'script.py', out, home, die, str(n_workers)]
    return subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(PYTHONPATH=str(Path(mod.__file__).parents[2])))

def lines(path): return [o.split() for o in path.read_text().splitlines()] if path.exists() else []

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z' if Path('/proc/self/stat').exists() else os.kill(pid, 0) is None
    except OSError: return False

@pytest.mark.once
@posix
@pytest.mark.parametrize('n_workers', [0, 2])
def test_killed_and_resumed(home, tmp_path, n_workers):
    fill(home, 500)
    p = start(tmp_path, home, tmp_path/'first', n_workers=n_workers)
    end = time.monotonic() + 60
    def logged(): return [json.loads(o) for f in kept(tmp_path) if f.suffix == '.log' for o in f.read_text().split('\n')[1:-1]]
    while len(logged()) < 2 and p.poll() is None and time.monotonic() < end: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    safe = {f'{row:04d}.png' for o in logged() for row,_ in o}
    assert 128 <= len(safe) < 500 and not [o for o in kept(tmp_path) if o.suffix == '.npy']
    while any(alive(int(o)) for o,_ in lines(tmp_path/'first')) and time.monotonic() < end: time.sleep(.05)
    assert not any(alive(int(o)) for o,_ in lines(tmp_path/'first'))  # no worker outlives its parent
    p = start(tmp_path, home, tmp_path/'second', n_workers=n_workers)
    out,err = p.communicate(timeout=60)
    second = [o for _,o in lines(tmp_path/'second')]
    assert not safe & set(second) and len(safe) + len(second) == 500, err
    assert out.strip() == from_folder(home, size=8, cache=False).fingerprint


@pytest.mark.once
@posix
@pytest.mark.parametrize('broken', [False, True])
def test_two_at_once(home, tmp_path, broken):
    "Two processes that decode the same folder, as the ranks of a training do, both get it whole."
    fill(home, 300)
    if broken: (home/'x.png').write_bytes(b'')
    script = SCRIPT.replace('size=8,', 'size=8, on_error="skip",')
    both = [start(tmp_path, home, tmp_path/f'{i}', n_workers=0, script=script) for i in range(2)]
    res = [p.communicate(timeout=60) for p in both]
    should = read(home, on_error='skip', cache=False)[0].fingerprint
    assert [out.strip() for out,_ in res] == [should]*2, res
    assert read(home, on_error='skip')[0].fingerprint == should and [o.suffix for o in kept(tmp_path)] == ['.log', '.npy']


@posix
def test_dead_worker(home, tmp_path):
    fill(home, 400)
    out,err = start(tmp_path, home, tmp_path/'first', 'worker').communicate(timeout=60)
    assert 'RuntimeError: a process that decodes images has died' in err and 'n_workers=0' in err
    out,err = start(tmp_path, home, tmp_path/'second').communicate(timeout=60)
    assert out.strip() and len(lines(tmp_path/'second')) < 400, err


@pytest.mark.once
@posix
def test_interrupt(home, tmp_path):
    "Ctrl-C ends it with one traceback, and what was decoded is kept."
    fill(home, 500)
    p = start(tmp_path, home, tmp_path/'first', 'slow') # there is enough left when the signal comes
    end = time.monotonic() + 60
    while len(lines(tmp_path/'first')) < 150 and time.monotonic() < end: time.sleep(.01)
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode and err.count('KeyboardInterrupt') == 1, err
    assert start(tmp_path, home, tmp_path/'second').communicate(timeout=60)[0].strip()
    assert len(lines(tmp_path/'second')) < 500


@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_other_start_methods(home, tmp_path, method):
    import multiprocessing as mp
    if method not in mp.get_all_start_methods(): pytest.skip(f'no {method} here')
    fill(home, 100)
    src = f'''
import multiprocessing as mp
from cactus_nb.data.folder import from_folder
if __name__ == '__main__':
    mp.set_start_method({method!r})
    print(from_folder({str(home)!r}, size=8, n_workers=2).fingerprint)'''
    (tmp_path/'script.py').write_text(src)
    res = subprocess.run([sys.executable, tmp_path/'script.py'], capture_output=True, text=True, timeout=120, env=os.environ | dict(PYTHONPATH=str(Path(mod.__file__).parents[2])))
    assert res.stdout.strip() == from_folder(home, size=8, cache=False).fingerprint, res.stderr


def test_workers_import_no_torch():
    src = 'import sys, cactus_nb.data.folder; print([o for o in ("torch", "fastai", "matplotlib", "pandas") if o in sys.modules])'
    res = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True, cwd=Path(mod.__file__).parents[2])
    assert res.stdout.strip() == '[]', res.stderr


@pytest.mark.once
@posix
def test_memory(home, tmp_path):
    "20,000 images of 84x84, 423 MB of pixels, in far less memory than they take."
    f = io.BytesIO()
    Image.new('RGB', (2, 2)).save(f, 'bmp')
    for i in range(20_000): (home/f'{i:05d}.bmp').write_bytes(f.getvalue())
    src = f'''
import resource, warnings
from cactus_nb.data.folder import from_folder
warnings.simplefilter('ignore')
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ims = from_folder({str(home)!r}, n_workers=0)
assert ims.x.nbytes > 4e8
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)'''
    res = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True, cwd=Path(mod.__file__).parents[2])
    unit = 1 if sys.platform == 'darwin' else 1024
    assert int(res.stdout)*unit < 100e6, res.stderr


# New images for a trained model

@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
@pytest.mark.parametrize('channels', [1, 3])
def test_as_images_is_from_folder(home, channels, fit):
    "Files one by one, as text, as PIL images, all mixed: the pixels that the folder has."
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(0, (50, 30)).save(home/'a.jpg', exif=exif)
    noise(1, (30, 50), 'RGBA').save(home/'b.png')
    noise(2).quantize(9).save(home/'c.gif', transparency=3)
    Image.fromarray(np.random.default_rng(3).integers(0, 65536, (30, 40), dtype=np.uint16)).save(home/'d.png')
    noise(4, mode='CMYK').save(home/'e.tiff', exif=exif, compression='tiff_lzw')
    noise(5, mode='L').save(home/'f.tiff', exif=exif)
    options = dict(fit=fit, background=70)
    ims,_ = read(home, size=20, channels=channels, **options)
    files = [home/o for o in ims.ids]
    for objs in (files, tuple(map(str, files)), L(files)): assert (as_images(objs, ims.shape, **options) == ims.x).all()
    mixed = [Image.open(o) if o.name[0] in 'bce' else o for o in files]
    assert (as_images(mixed, ims.shape, **options) == ims.x).all()
    for o,x in zip(mixed, ims.x): assert (as_images(o, ims.shape, **options) == x[None]).all()
    assert np.abs(as_images(Image.open(home/'a.jpg'), ims.shape, **options) - ims.x[:1].astype(int)).max() < 5


def test_as_images_changes_no_image():
    im = noise(0, (300, 200), 'RGBA')
    before = im.tobytes()
    assert as_images(im, (1, 8, 8)).shape == (1, 1, 8, 8)
    assert (im.mode, im.size, im.tobytes()) == ('RGBA', (300, 200), before)


def test_as_images_arrays():
    x = np.arange(2*8*8, dtype=np.uint8).reshape(2, 1, 8, 8)
    for o in (x, x[:,0], ImageSet(x)): assert (as_images(o, (1, 8, 8)) == x).all()
    assert as_images(np.zeros((2, 5, 6, 6), np.uint8), (5, 6, 6)).shape == (2, 5, 6, 6)


@pytest.mark.parametrize('obj, shape, words', [
    ([Image.new('L', (4, 4))], (2, 4, 4), '1 or 3 channels, 2 was needed: give an array'),
    ([Image.new('L', (4, 4)), np.zeros((4, 4))], (1, 4, 4), 'not ndarray, as is image 1; stack arrays'),
    ([], (1, 4, 4), 'the list of images is empty'),
    ([Image.new('L', (4, 4)), Image.fromarray(np.int32([[-1]]))], (1, 4, 4), 'image 1 cannot be read: values from -1'),
    (5, (1, 4, 4), 'not int'),
    (np.zeros((2, 1, 5, 5), np.uint8), (1, 4, 4), '[1, 4, 4] was needed: resize them'),
])
def test_as_images_refuses(obj, shape, words):
    with pytest.raises(ValueError) as e: as_images(obj, shape)
    assert words in str(e.value)


def test_as_images_refuses_files(home):
    noise(0).save(home/'a.png')
    (home/'cut.png').write_bytes((home/'a.png').read_bytes()[:300])
    with pytest.raises(ValueError, match='image 1 cannot be read: .*cut.png: '): as_images([home/'a.png', home/'cut.png'], (1, 4, 4))
    with pytest.raises(ValueError, match='Is a directory|Permission denied'): as_images(home, (1, 4, 4))
    with pytest.raises(FileNotFoundError): as_images(home/'none.png', (1, 4, 4))
    for kw in (dict(fit='squash'), dict(background=300), dict(max_pixels=0)):
        for o in (home/'a.png', np.zeros((1, 1, 4, 4), np.uint8)):
            with pytest.raises(ValueError, match=next(iter(kw))): as_images(o, (1, 4, 4), **kw)
    with pytest.raises(TypeError, match='size'): as_images(home/'a.png', (1, 4, 4), size=4)


# The whole way

def test_from_files_to_classes_without_a_label(home, tmp_path):
    from cactus_nb.all import PCA, classify, conv4, glyphs, kmeans_partitions, proto_learner, task_dls
    letters = glyphs(n_variants=5)
    for i in range(0, 300*5): Image.fromarray(letters.x[i,0]).save(home/f'{i:04d}.png')
    ims,_ = read(home, size=28, channels=1)
    assert ims.y is None and (ims.x == letters.x[:1500]).all()
    z = PCA(16).fit(ims).embed(ims)
    parts = kmeans_partitions(z, n_clusters=60, n_partitions=2, seed=0)
    dls = task_dls(ims, parts, n_way=5, k_shot=1, n_query=3, n_tasks=40, n_valid=20)
    learn = proto_learner(dls, conv4(n_filters=16, seed=0))
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert learn.recorder.metric_names[3] == 'pseudo_accuracy' and learn.recorder.values[-1][-1] > .4
    new = letters[-15:]
    for i in range(15): Image.fromarray(new.x[i,0]).save(tmp_path/f'{i}.png')
    files = [tmp_path/f'{i}.png' for i in range(15)]
    probs = classify(learn, files[::5], ['a', 'b', 'c'], files)
    assert probs.shape == (15, 3) and (probs.argmax(1).numpy() == np.arange(15)//5).mean() > .6

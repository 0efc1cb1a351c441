"""Files that torch wrote, read without it; broken ones are refused, malicious ones never run."""

import contextlib
import io
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pdrec_jax.convert.inert_pickles import Call, Global, follow
from pdrec_jax.convert.torch_files import read_tensors, write_tensors
from pdrec_jax.errors import UserError

FILES = Path(__file__).parent / "files"


def weights_of(golden) -> dict[str, np.ndarray]:
    return {key.removeprefix("w/"): value for key, value in golden.items() if key[:2] == "w/"}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class TestReading:
    @pytest.mark.parametrize(
        ("file", "golden"),
        [
            ("dnn", "dnn_tiny"),
            ("module", "dnn_tiny"),
            ("sasrec", "sasrec_tiny"),
            ("gru4rec", "gru4rec_tiny"),
        ],
    )
    def test_state_dicts_and_a_whole_module(self, goldens, file, golden):
        assert_same(read_tensors(FILES / f"{file}.pth"), weights_of(goldens(golden)))

    def test_a_state_dict_within_a_checkpoint_in_half_precision(self, goldens):
        expected = {k: v.astype(np.float16) for k, v in weights_of(goldens("dnn_tiny")).items()}
        assert_same(read_tensors(FILES / "within.pth"), expected)

    def test_what_we_write_is_read_back(self, goldens, tmp_path):
        weights = weights_of(goldens("sasrec_tiny"))
        write_tensors(tmp_path / "a.pth", weights)
        write_tensors(tmp_path / "b.pth", weights)
        assert_same(read_tensors(tmp_path / "a.pth"), weights)
        assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()

    def test_torch_reads_what_we_write(self, goldens, tmp_path):
        torch = pytest.importorskip("torch")
        weights = weights_of(goldens("sasrec_tiny"))
        write_tensors(tmp_path / "a.pth", weights)
        for only in (True, False):
            found = torch.load(tmp_path / "a.pth", weights_only=only)
            assert_same({name: tensor.numpy() for name, tensor in found.items()}, weights)


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


class TestRefusals:
    def test_files_that_are_none(self, tmp_path):
        path = tmp_path / "x.pth"
        for data in (b"", b"\n", b"text", b"\x80\x02}."):
            path.write_bytes(data)
            assert complaint(path).startswith("not a file of torch.save since torch 1.6; ")
        assert complaint(FILES / "old.pth").startswith("not a file of torch.save since torch 1.6")
        assert complaint(tmp_path / "nowhere") == "no such file"
        assert complaint(tmp_path) == "is a directory, a file is expected"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/b", b"")
        assert complaint(path) == "no file of torch.save, which has one data.pkl"

    def altered(self, path: Path, name: str, change) -> str:
        """What is said of dnn.pth with another content of one member; None removes it."""
        with zipfile.ZipFile(FILES / "dnn.pth") as before, zipfile.ZipFile(path, "w") as after:
            for member in before.namelist():
                data = before.read(member)
                if member.partition("/")[2] == name:
                    data = change(data)
                if data is not None:
                    after.writestr(member, data)
        return complaint(path)

    def test_parts_that_are_missing_or_wrong(self, tmp_path):
        path = tmp_path / "x.pth"
        assert self.altered(path, "data/0", lambda _: None) == "data/0 is missing in it"
        assert self.altered(path, "data/0", lambda data: data[:-4]) == "data/0 is cut short"
        assert self.altered(path, "data/0", lambda d: d + b"1234").startswith("data/0 has 68 bytes")
        big = self.altered(path, "byteorder", lambda _: b"big")
        assert big == "numbers with the highest byte first are not read"
        other = self.altered(path, "data.pkl", lambda d: d.replace(b"FloatS", b"HumanS"))
        assert other == "numbers of the kind 'HumanStorage' are not read"
        cut = self.altered(path, "data.pkl", lambda data: data[:-40])
        assert cut.startswith("a broken pickle (")
        for plain in (
            b"\x80\x02}.",
            b"\x80\x02]q\0.",
            b"\x80\x02K\x05.",
            b"\x80\x02}X\x01\0\0\0aK\1s.",
        ):
            told = self.altered(path, "data.pkl", lambda _, plain=plain: plain)
            assert told == "a state dict or a module is expected"

    def test_a_tensor_that_reaches_beyond_its_storage(self, tmp_path):
        """emb_layer.bias has 4 numbers: as many from the second on, or a million of one."""
        path, size = tmp_path / "x.pth", b"K\x04\x85q"
        with zipfile.ZipFile(FILES / "dnn.pth") as archive:
            data = archive.read("dnn/data.pkl")
        assert size in data
        for other in (b"K\x05\x85q", b"J\xff\xff\xff\x7f\x85q"):
            told = self.altered(path, "data.pkl", lambda d, other=other: d.replace(size, other, 1))
            assert told.endswith(": reaches beyond its storage")

    def test_a_zip_bomb(self, tmp_path):
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(10_000_000))
        assert complaint(path) == "data.pkl has 10,000,000 bytes, or is compressed"

    @pytest.mark.parametrize("file", ["dnn", "module", "gru4rec"])
    def test_flipped_bytes_and_cuts(self, tmp_path, file):
        """Either one line of error, or (where nothing that counts is hit) the same tensors."""
        whole, path = (FILES / f"{file}.pth").read_bytes(), tmp_path / "x.pth"
        expected, draw = read_tensors(FILES / f"{file}.pth"), random.Random(0)
        refused = 0
        for _ in range(150):
            data = bytearray(whole)
            if draw.random() < 0.2:
                del data[draw.randrange(len(data)) :]
            else:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(data))
            try:
                found = read_tensors(path)
            except UserError as error:
                told, found = str(error), None
            if found is None:
                assert told.startswith(f"{path}: ")
                assert "\n" not in told
                refused += 1
            else:
                assert_same(found, expected)
        assert refused > 75


class TestMalice:
    """Whatever a pickle names, nothing is imported and nothing is called."""

    @pytest.fixture(autouse=True)
    def nothing_runs(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        before = set(sys.modules)
        yield
        assert not (tmp_path / "ran").exists()
        assert set(sys.modules) - before <= {"pickletools"}

    def test_a_command_beside_a_tensor(self):
        assert read_tensors(FILES / "malicious.pth").keys() == {"weight"}

    def test_a_command_before_the_tensors(self, goldens):
        found = read_tensors(FILES / "malicious_too.pth")
        assert_same(found, weights_of(goldens("dnn_tiny")))

    @pytest.mark.parametrize(
        "pickle",
        [
            b"cos\nsystem\n(X\x09\0\0\0touch rantR.",
            b"(X\x09\0\0\0touch ranios\nsystem\n.",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
            b"\x80\x02cantigravity\nx\n)\x81}b.",
            b"\x80\x02(cos\nsystem\nX\x09\0\0\0touch rano.",
        ],
    )
    def test_pickles_by_hand(self, pickle):
        found = follow(pickle, "x")
        assert isinstance(found, Call)
        assert isinstance(found.function, Global)

    def test_a_module_within_itself(self, tmp_path):
        state = b"}X\x08\0\0\0_modules}(X\x01\0\0\0ah\0X\x01\0\0\0bh\0us"
        data = b"\x80\x02cmodels.DNN\nDNN\n)\x81q\0" + state + b"b."
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("a/data.pkl", data)
        (tmp_path / "x.pth").write_bytes(content.getvalue())
        assert complaint(tmp_path / "x.pth") == "a state dict or a module is expected"

    def test_a_name_that_is_a_list(self):
        """Its text doubles with each level of it, of which a pickle of few bytes can have many."""
        lists = b"]\x940" + b"".join(b"](h%ch%ce\x940" % (n, n) for n in range(12))
        for names in (b"h\x0c\x8c\x01a", b"\x8c\x01ah\x0c"):
            with pytest.raises(UserError, match="a name that is no text is not read"):
                follow(b"\x80\x04" + lists + names + b"\x93.", "x")

    def test_modules_that_are_within_two_others_each(self, tmp_path):
        def module(members: bytes) -> bytes:
            return b"cmodels.DNN\nDNN\n)\x81}X\x08\0\0\0_modules}(" + members + b"usb"

        def name(letter: bytes) -> bytes:
            return b"X\x01\0\0\0" + letter

        parts = [module(b"") + b"\x940"]
        for n in range(17):
            both = b"".join(name(letter) + b"h%c" % n for letter in (b"a", b"b"))
            parts.append(module(both) + b"\x940")
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x04" + b"".join(parts) + b"h\x11.")
        told = complaint(tmp_path / "x.pth")
        assert told == "a broken file (modules of too many members)"

    def test_numbers_of_many_digits_as_keys(self):
        """As many of them as one likes have the same hash."""
        for last in (b"\x01", b"\xfe"):
            with pytest.raises(UserError, match="a key of more than 64 bits is not read"):
                follow(b"\x80\x02}\x8a\x09" + b"\0" * 8 + last + b"K\x01s.", "x")

    def test_what_is_long_is_told_in_short(self, tmp_path):
        """Also where it is the text of Python's own error, or the name of a tensor."""
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(FILES / "dnn.pth") as archive:
            data = archive.read("dnn/data.pkl")
        name = b"X\x10\0\0\0emb_layer.weight"
        assert data.count(name) == 1
        long = b"X" + (70_000).to_bytes(4, "little") + b"a" * 70_000
        alter = TestRefusals().altered
        assert alter(path, "data.pkl", lambda d: d.replace(name, long)) == (
            "a broken file (a name of 70,000 characters)"
        )
        assert len(alter(path, "data.pkl", lambda _: b"F" + b"a" * 70_000 + b"\n.")) < 300
        kind = data.replace(b"FloatStorage", b"Human" * 20_000)
        assert len(alter(path, "data.pkl", lambda _: kind)) < 100
        axes = data.replace(b"K\x04\x85q", b"(" + b"K\x01" * 33 + b"tq", 1)
        told = alter(path, "data.pkl", lambda _: axes)
        assert told == "emb_layer.bias: not a tensor (of too many dimensions)"

    def test_keys_that_hold_others(self):
        """A hash goes down as deep as they are, in C, where nothing stops it."""
        deep = b"(K\x01" + b"\x85" * 300_000  # a tuple in a tuple in ..
        for end in (b"K\x02d.", b"\x91."):  # as the key of a dictionary, in a frozen set
            with pytest.raises(UserError, match="a key of type tuple is not read"):
                follow(b"\x80\x04" + deep + end, "x")

    def test_random_pickles(self):
        draw = random.Random(0)
        codes = (
            b"(.)]}tl0123abcdeghijopqrsuKMJGINQRSTUVX\x80\x81\x85\x86\x87\x88\x8a\x8c\x90\x93\x94"
        )
        for _ in range(2000):
            data = bytes(draw.choice(codes) for _ in range(draw.randrange(40))) + b"."
            # Any other error than the user's would fail the test.
            with contextlib.suppress(UserError):
                follow(data, "x")

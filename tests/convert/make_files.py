"""Makes the files of torch that the tests read, with torch and a clone of the reference.

git clone https://github.com/hulkima/PDRec ../PDRec
python -m pip install torch
python tests/convert/make_files.py ../PDRec

The models are those of tests/goldens (dnn_tiny, sasrec_tiny, gru4rec_tiny), so that what a file
holds can be held against what the reference computed with it.
"""

import argparse
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
OPTIONS = types.SimpleNamespace(
    device="cpu", hidden_units=8, maxlen=12, num_blocks=2, num_heads=1, dropout_rate=0.0,
    temperature=5.0, dataset="tiny",
)  # fmt: skip


def filled(module: torch.nn.Module, golden: str) -> torch.nn.Module:
    with np.load(HERE.parent / "goldens" / f"{golden}.npz") as arrays:
        weights = {
            key.removeprefix("w/"): torch.from_numpy(arrays[key])
            for key in arrays.files
            if key.startswith("w/")
        }
    module.load_state_dict(weights)
    return module


class Malicious:
    def __reduce__(self) -> tuple:
        return eval, ("open('ran', 'w').close()",)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reference", type=Path)
    sys.path.insert(0, str(parser.parse_args().reference))
    sys.modules.setdefault("ipdb", types.ModuleType("ipdb"))  # a debugger that it imports
    from models.DNN import DNN
    from models.model import GRU4Rec_withNeg_Dist, SASRec_V1_withNeg_Dist

    files = HERE / "files"
    files.mkdir(exist_ok=True)
    dnn = filled(DNN([23, 7], [7, 23], 4), "dnn_tiny")
    torch.save(dnn, files / "module.pth")  # as TI_DiffRec.py does
    torch.save(dnn.state_dict(), files / "dnn.pth")
    half = {name: tensor.half() for name, tensor in dnn.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": half, "optimizer": {}}, files / "within.pth")
    torch.save(dnn.state_dict(), files / "old.pth", _use_new_zipfile_serialization=False)
    for name, kind in (("sasrec", SASRec_V1_withNeg_Dist), ("gru4rec", GRU4Rec_withNeg_Dist)):
        model = filled(kind(7, 31, OPTIONS), f"{name}_tiny")
        torch.save(model.state_dict(), files / f"{name}.pth")  # as EarlyStopping_onetower does
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "run": Malicious()}, content)
    (files / "malicious.pth").write_bytes(content.getvalue())
    # The pickle of a state dict with a command before it.
    with (
        zipfile.ZipFile(files / "dnn.pth") as before,
        zipfile.ZipFile(files / "malicious_too.pth", "w") as after,
    ):
        for name in before.namelist():
            data = before.read(name)
            if name.endswith("data.pkl"):
                data = pickle.dumps(Malicious(), 2)[:-1] + b"0" + data[2:]
            after.writestr(name, data)


if __name__ == "__main__":
    main()

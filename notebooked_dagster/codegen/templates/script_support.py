"""What the scripts beside this file share: arguments, data files, metrics, saving, loading, serving.

Written by notebooked-dagster; it is the same for every experiment and needs only what is imported here.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import io
import json
import logging
import math
import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path

FORMAT = 1
HERE = Path(__file__).resolve().parent
_metrics = {}
_data_path = None
_notebook_dir = None


# --- arguments ---------------------------------------------------------------------------------------------------


def arguments(defaults, argv=None, description=None):
    """Hyperparameters and paths from the command line, then SM_HP_<NAME>, then SM_HPS, then ``defaults``."""
    global _data_path, _notebook_dir
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    environment = _from_environment(defaults)
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name}",
            type=_reader(name, default),
            default=environment.get(name, default),
            metavar=type(default).__name__.upper() if default is not None else "VALUE",
            help=f"default: {default!r}",
        )
    # Where the notebook has a hyperparameter of one of these names, that one keeps the name.
    for name, default, text in (
        (
            "seed",
            os.environ.get("NOTEBOOKED_SEED"),
            "seed of every random generator, set before the notebook's own",
        ),
        (
            "data_path",
            os.environ.get("SM_CHANNEL_TRAINING") or os.environ.get("NOTEBOOKED_DATA_PATH"),
            "file or folder with the data",
        ),
        ("model_dir", os.environ.get("SM_MODEL_DIR") or "model", "where the model is saved"),
        ("output_dir", os.environ.get("SM_OUTPUT_DATA_DIR") or "output", "where metrics.json is written"),
    ):
        if name not in defaults:
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, default=default, help=text)
    args = parser.parse_args(argv)
    _data_path = Path(args.data_path) if args.data_path else None
    if _data_path is not None and not _data_path.exists():
        raise SystemExit(f"error: there is no data at {_data_path}; correct --data-path.")
    _notebook_dir = os.environ.get("NOTEBOOKED_NOTEBOOK_DIR")
    args.hyperparameters = {name: getattr(args, name) for name in defaults}
    if args.seed is not None and "seed" not in defaults:
        _seed(int(args.seed))
    return args


def _from_environment(defaults):
    try:
        given = json.loads(os.environ.get("SM_HPS") or "{}")
    except ValueError as error:
        raise SystemExit(f"error: SM_HPS is not JSON: {error}.") from None
    values = {}
    for name, default in defaults.items():
        read = _reader(name, default)
        try:
            if f"SM_HP_{name.upper()}" in os.environ:
                values[name] = read(os.environ[f"SM_HP_{name.upper()}"])
            elif name in given:
                values[name] = read(given[name]) if isinstance(given[name], str) else given[name]
        except argparse.ArgumentTypeError as error:
            raise SystemExit(f"error: hyperparameter {name} in the environment: {error}.") from None
    return values


def _reader(name, default):
    """A parser of one value, by the type of its default."""

    def read(text):
        if isinstance(default, str):
            return _string(text)
        if isinstance(default, bool):
            if text.strip().lower() in ("true", "1", "yes", "on"):
                return True
            if text.strip().lower() in ("false", "0", "no", "off"):
                return False
            raise argparse.ArgumentTypeError(f"{text!r} is not a boolean: write true or false")
        value = _literal(text)
        if default is None or value is None:
            return value
        if isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(default, int) and isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(
            value, (float, int) if isinstance(default, int) else type(default)
        ):
            raise argparse.ArgumentTypeError(f"{text!r} is not of type {type(default).__name__}")
        return value

    read.__name__ = name
    return read


def _string(text):
    """SageMaker and JSON quote strings; a person at the shell does not."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _literal(text):
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _seed(value):
    import random

    random.seed(value)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(value % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(value)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(value)


# --- data --------------------------------------------------------------------------------------------------------


def data_file(path, required=True):
    """Where a file that the notebook names lies here.

    Looked for under --data-path (or is that file), then beside the notebook, then in the working folder. What is only
    given a name is not ``required``: it may be part of a longer path, or a file that is yet to be written.
    """
    wanted = Path(path)
    if wanted.is_absolute() and wanted.exists():
        return path
    places = []
    if _data_path is not None:
        if _data_path.is_file():
            places += [_data_path] if _data_path.suffix == wanted.suffix or not wanted.suffix else []
            places += [_data_path.parent / wanted.name]
        else:
            places += [_data_path / wanted, _data_path / wanted.name]
    if not wanted.is_absolute():
        places += [Path(_notebook_dir) / wanted] if _notebook_dir else []
        places += [wanted]
    for place in places:
        if place.exists():
            return str(place)
    missing = f"it is in none of {', '.join(str(place) for place in places) or 'the places known'}"
    if required:
        raise FileNotFoundError(2, f"the notebook reads this file and {missing}; pass --data-path", path)
    print(
        f"note: {path!r} has a name and {missing}; if it is to be read from there, pass --data-path",
        file=sys.stderr,
    )
    return path


# --- metrics -----------------------------------------------------------------------------------------------------


def metric(name, value):
    """Note a number under a name and return it unchanged. Arrays count by their mean, mappings by their entries."""
    for key, number in _numbers(name, value):
        _metrics[key] = number
    return value


def _numbers(name, value):
    if isinstance(value, bool) or value is None or isinstance(value, (str, bytes)):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{name}_{key}", inner)
        return
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        if getattr(value, "ndim", 0) or isinstance(value, (list, tuple)):
            flat = [float(item) for item in value]
            if flat and len(flat) <= 1000:
                yield f"{name}_mean", sum(flat) / len(flat)
            return
        number = float(value)
    except (TypeError, ValueError):
        return
    if math.isfinite(number):
        yield name, number


def metrics():
    """The numbers noted so far."""
    return dict(_metrics)


# --- names the notebook never defines ----------------------------------------------------------------------------


class Undefined:
    """Stands for a name that the notebook uses and defines nowhere; using it says so."""

    def __init__(self, name, cell):
        object.__setattr__(
            self, "_message", f"name {name!r} is used in cell {cell} and defined nowhere in the notebook"
        )

    def _fail(self, *args, **kwargs):
        raise NameError(object.__getattribute__(self, "_message"))

    __getattribute__ = __setattr__ = __call__ = __getitem__ = __setitem__ = __iter__ = __len__ = __bool__ = (
        _fail
    )
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __enter__ = (
        _fail
    )
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __str__ = __repr__ = __format__ = (
        __index__
    ) = _fail
    __float__ = __int__ = __array__ = _fail
    __hash__ = None


# --- saving ------------------------------------------------------------------------------------------------------


def finish(args, model, state, example, predict, framework, hashes, scripts):
    """Write metrics.json and the model folder, and log to MLflow where MLFLOW_TRACKING_URI is set."""
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    values = metrics()
    _write_json(output / "metrics.json", values)
    folder = Path(args.model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    description = save(folder, model, state, framework)
    description.update(
        {
            "metrics": values,
            "hyperparameters": args.hyperparameters,
            "stage_hashes": hashes,
            "packages": _packages(),
            "python": ".".join(str(part) for part in sys.version_info[:3]),
        }
    )
    description.update(describe(example, predict))
    for name in scripts:
        if (HERE / name).exists() and (HERE / name).resolve() != (folder / name).resolve():
            shutil.copyfile(HERE / name, folder / name)
    _write_json(folder / "model.json", description)
    for name, value in values.items():
        print(f"metric {name} = {value:.6g}")
    print(
        f"model saved in {folder} ({description['framework']}, {description.get('model_class') or 'no model'})"
    )
    if os.environ.get("MLFLOW_TRACKING_URI"):
        log_to_mlflow(folder, description, model, example, predict)
    return values


def save(folder, model, state, framework):
    """Save the model in its framework's own format, and the objects prediction needs beside it."""
    kind, file = _save_model(folder, model, framework)
    description = {
        "format": FORMAT,
        "framework": kind,
        "file": file,
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}" if model is not None else None,
    }
    kept = {}
    for name, value in state.items():
        if value is model:
            continue
        try:
            kept[name] = _dumps(value)
        except Exception as error:
            print(
                f"warning: {name} cannot be saved for prediction: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
    if kept:
        (folder / "state.pkl").write_bytes(pickle.dumps(kept))
        description["state"] = "state.pkl"
    return description


def _save_model(folder, model, framework):
    if model is None:
        return framework or "none", None
    roots = [base.__module__.partition(".")[0] for base in type(model).__mro__]
    if "torch" in roots:
        import torch

        torch.save(model, folder / "model.pt")
        if hasattr(model, "state_dict"):
            torch.save(model.state_dict(), folder / "state_dict.pt")
        return "torch", "model.pt"
    if "keras" in roots or "tensorflow" in roots:
        model.save(folder / "model.keras")
        return "keras", "model.keras"
    if "xgboost" in roots and type(model).__name__ != "Booster" and "sklearn" not in roots[:1]:
        model.save_model(folder / "model.ubj")
        return "xgboost", "model.ubj"
    if "xgboost" in roots:
        model.save_model(folder / "model.ubj")
        return "xgboost", "model.ubj"
    if "lightgbm" in roots and type(model).__name__ == "Booster":
        model.save_model(str(folder / "model.txt"))
        return "lightgbm", "model.txt"
    if "statsmodels" in roots and hasattr(model, "save"):
        model.save(str(folder / "model.pickle"))
        return "statsmodels", "model.pickle"
    if "sklearn" in roots or "lightgbm" in roots or "catboost" in roots:
        import joblib

        joblib.dump(model, folder / "model.joblib")
        return "lightgbm" if "lightgbm" in roots else "sklearn", "model.joblib"
    (folder / "model.pkl").write_bytes(_dumps(model))
    return "pickle", "model.pkl"


def _dumps(value):
    try:
        return pickle.dumps(value)
    except Exception:
        import cloudpickle

        return cloudpickle.dumps(value)


def _packages():
    """Versions of the installed packages that are imported now: what the model was made with."""
    from importlib import metadata

    found = {}
    by_module = metadata.packages_distributions()
    for module in sorted({name.partition(".")[0] for name in sys.modules} & by_module.keys()):
        for distribution in by_module[module]:
            found[distribution] = metadata.version(distribution)
    return dict(sorted(found.items()))


def _write_json(path, value):
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(
        json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(temporary, path)


# --- signature ---------------------------------------------------------------------------------------------------

_TYPES = {
    "b": "boolean",
    "i": "long",
    "u": "long",
    "f": "double",
    "M": "datetime",
    "U": "string",
    "O": "string",
}


def describe(example, predict):
    """Signature and input example, from what the notebook itself would predict; empty where it cannot be told."""
    if example is None:
        return {}
    try:
        example = _first_rows(example)
        inputs, body = _signature(example)
        reply = plain(predict(example))
    except Exception as error:
        print(
            f"warning: no signature: predicting the example raised {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return {}
    first = reply[0] if isinstance(reply, list) and reply else reply
    while isinstance(first, list) and first:
        first = first[0]
    kind = {bool: "boolean", int: "long", float: "double", str: "string"}.get(type(first), "any")
    described = {"signature": {"inputs": inputs, "outputs": [{"type": kind}]}, "input_example": body}
    return {**described, "input_kind": _kind(example)}


def _first_rows(value, count=3):
    """The first rows of a table; one row alone stays as it is."""
    if hasattr(value, "iloc"):
        return value.head(count)
    if getattr(value, "ndim", 0) > 1:
        return value[:count]
    if isinstance(value, list) and value and isinstance(value[0], (list, str, dict)):
        return value[:count]
    return value


def _kind(value):
    if isinstance(value, dict):
        return "arguments"
    if hasattr(value, "columns"):
        return "frame"
    if hasattr(value, "iloc"):
        return "series"
    return "tensor" if hasattr(value, "detach") else "array"


def _signature(example):
    if hasattr(example, "columns") and hasattr(example, "dtypes"):
        columns = [{"name": str(name), "type": _column_type(example[name])} for name in example.columns]
        rows = json.loads(example.head(3).to_json(orient="split", date_format="iso"))
        return columns, {"dataframe_split": {"columns": rows["columns"], "data": rows["data"]}}
    if isinstance(example, dict):
        columns = [{"name": str(name), "type": _scalar_type(value)} for name, value in example.items()]
        return columns, {"inputs": plain(example)}
    array = example.detach().cpu().numpy() if hasattr(example, "detach") else example
    if hasattr(array, "to_numpy"):
        array = array.to_numpy()
    if hasattr(array, "toarray"):
        array = array.toarray()
    if not hasattr(array, "dtype"):
        import numpy

        array = numpy.asarray(example)
    if array.ndim == 0:
        raise TypeError("the example is one number")
    if array.dtype.kind in "OUS":
        return None, {"inputs": plain(array[:3])}
    return {"tensor": {"shape": [-1, *array.shape[1:]], "dtype": str(array.dtype)}}, {
        "inputs": plain(array[:3])
    }


def _column_type(column):
    dtype = column.dtype
    if str(dtype) == "category":
        return "string"
    return _TYPES.get(getattr(dtype, "kind", "O"), "string")


def _scalar_type(value):
    return {bool: "boolean", int: "long", float: "double", str: "string"}.get(type(value), "any")


def plain(value):
    """Anything a model returns as JSON has it: lists, numbers, strings; NaN becomes null."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict(orient="records"))
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if hasattr(value, "toarray"):
        value = value.toarray()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


# --- loading -----------------------------------------------------------------------------------------------------


def load(folder, modules):
    """Load the model and put the saved state into the modules that the notebook's functions read it from.

    Returns:
        The model and the state, as a pair.
    """
    folder = Path(folder)
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    model = _load_model(folder, description)
    state = {}
    if description.get("state"):
        for name, data in pickle.loads((folder / description["state"]).read_bytes()).items():
            state[name] = pickle.loads(data)
    for module in modules:
        vars(module).update(state)
        vars(module).update(description.get("hyperparameters", {}))
    return model, state


def _load_model(folder, description):
    file, kind = description.get("file"), description.get("framework")
    if not file:
        return None
    path = folder / file
    if kind == "torch":
        import torch

        model = torch.load(path, map_location="cpu", weights_only=False)
        return model.eval() if hasattr(model, "eval") else model
    if kind == "keras":
        return importlib.import_module("keras").models.load_model(path)
    if kind == "xgboost":
        module, _, name = description["model_class"].rpartition(".")
        model = getattr(importlib.import_module(module), name)()
        model.load_model(path)
        return model
    if file == "model.txt":
        return importlib.import_module("lightgbm").Booster(model_file=str(path))
    if kind == "statsmodels":
        return importlib.import_module("statsmodels.iolib.smpickle").load_pickle(str(path))
    if file.endswith(".joblib"):
        return importlib.import_module("joblib").load(path)
    return pickle.loads(path.read_bytes())


def example(make):
    """An example of the model's input, as the notebook writes it; None where that does not work here."""
    try:
        return make()
    except Exception as error:
        print(f"warning: no input example: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def adapt(data, description):
    """What a request carried as the notebook's code had it: a DataFrame, a Series, a tensor, an array, arguments."""
    kind = description.get("input_kind")
    if kind == "tensor" and not hasattr(data, "detach"):
        import numpy
        import torch

        return torch.from_numpy(numpy.asarray(data))
    if kind == "series" and not hasattr(data, "iloc"):
        import pandas

        return pandas.Series(data)
    if kind == "series" and len(getattr(data, "columns", ())) == 1:
        return data.iloc[:, 0]
    return data


def predict(model, data):
    """Predict where the notebook shows no way to: ``model.predict``, or the model called on a tensor."""
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    if "torch" in roots:
        import torch

        if hasattr(model, "eval"):
            model.eval()
        with torch.no_grad():
            return model(data if hasattr(data, "detach") else torch.as_tensor(data, dtype=torch.float32))
    if roots & {"xgboost", "lightgbm"} and type(model).__name__ == "Booster" and "xgboost" in roots:
        import xgboost

        return model.predict(data if isinstance(data, xgboost.DMatrix) else xgboost.DMatrix(data))
    if hasattr(model, "predict"):
        return model.predict(data)
    if hasattr(model, "transform"):
        return model.transform(data)
    return model(data)


# --- requests ----------------------------------------------------------------------------------------------------


def read_body(body, content_type, description):
    """A request's body as the model wants it: a DataFrame, an array, or a mapping of arguments.

    Takes MLflow's ``inputs``, ``instances``, ``dataframe_split`` and ``dataframe_records``, a plain JSON array, and CSV.

    Raises:
        ValueError: The body is none of these.
    """
    found = _read_body(body, content_type, description)
    return _texts(found) if _takes_texts(description) else found


def _takes_texts(description):
    """Whether the model was fitted with one text a row: a list of strings, which has no columns to check."""
    example = description.get("input_example")
    rows = example.get("inputs") if isinstance(example, dict) else None
    no_columns = not (description.get("signature") or {}).get("inputs")
    return no_columns and isinstance(rows, list) and bool(rows) and all(isinstance(row, str) for row in rows)


def _texts(value):
    """One text a row. A table would be iterated by its columns' names, and answered with a prediction for each of them."""
    if hasattr(value, "columns"):
        if len(value.columns) != 1:
            raise ValueError(
                f"the model takes one text a row; the request has the columns {', '.join(map(str, value.columns))}"
            )
        value = list(value.iloc[:, 0])
    if not isinstance(value, list):
        return value
    value = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in value]
    for number, row in enumerate(value):
        if not isinstance(row, str):
            raise ValueError(f"row {number} is {row!r}; the model takes a text a row")
    return value


def _read_body(body, content_type, description):
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind in ("text/csv", "application/csv"):
        return _from_csv(body, description)
    if kind not in ("application/json", "application/jsonlines", ""):
        raise ValueError(f"content type {kind!r} is not supported; send application/json or text/csv")
    document = json.loads(body)
    if isinstance(document, dict):
        for key in ("dataframe_split", "dataframe_records", "inputs", "instances"):
            if key in document:
                return _shaped(document[key], description, split=key == "dataframe_split")
        return _shaped(document, description)
    return _shaped(document, description)


def _shaped(value, description, split=False):
    inputs = (description.get("signature") or {}).get("inputs")
    if split:
        return _frame(value["data"], value["columns"], inputs)
    if isinstance(inputs, list):
        names = [column["name"] for column in inputs]
        if isinstance(value, dict):
            if description.get("input_kind") == "arguments":
                return {name: _alone(item) for name, item in value.items()}
            if not any(isinstance(item, list) for item in value.values()):
                return _frame([value], None, inputs)
            return _frame(value, None, inputs)
        if value and isinstance(value[0], dict):
            return _frame(value, None, inputs)
        if description.get("input_kind") == "arguments":
            first = value[0] if value and isinstance(value[0], list) else value
            return dict(zip(names, first, strict=False))
        return _frame(value, names, inputs)
    if isinstance(inputs, dict):
        import numpy

        return numpy.asarray(value, dtype=inputs["tensor"]["dtype"])
    if value and isinstance(value, list) and isinstance(value[0], dict):
        return _frame(value, None, None)
    return value


def _alone(value):
    """One number, also where a client wraps it in a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _frame(data, columns, inputs):
    import pandas

    frame = pandas.DataFrame(data, columns=columns)
    if inputs:
        names = [column["name"] for column in inputs]
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise ValueError(f"columns are missing: {', '.join(missing)}")
        frame = frame[names]
        for column in inputs:
            if column["type"] == "double":
                frame[column["name"]] = pandas.to_numeric(frame[column["name"]])
            elif column["type"] == "datetime":
                frame[column["name"]] = pandas.to_datetime(frame[column["name"]])
    return frame


def _from_csv(body, description):
    text = body.decode("utf-8") if isinstance(body, bytes) else body
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    inputs = (description.get("signature") or {}).get("inputs")
    names = [column["name"] for column in inputs] if isinstance(inputs, list) else None
    header = rows[0] if rows and names and set(names) <= set(rows[0]) else None
    values = [[_number(cell) for cell in row] for row in (rows[1:] if header else rows)]
    if header:
        return _frame(values, header, inputs)
    return _shaped(values, description)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def write_body(prediction, accept):
    """A prediction as the body of a reply: ``{"predictions": …}``, or CSV where that is asked for."""
    value = plain(prediction)
    if (accept or "").partition(";")[0].strip().lower() == "text/csv":
        rows = value if isinstance(value, list) else [value]
        stream = io.StringIO()
        csv.writer(stream).writerows(row if isinstance(row, list) else [row] for row in rows)
        return stream.getvalue()
    return json.dumps({"predictions": value})


def app(model_dir, inference):
    """The FastAPI application of an inference module: GET /ping, POST /invocations."""
    from fastapi import FastAPI, Request, Response

    model = inference.model_fn(model_dir)
    application = FastAPI(title="notebook model")

    @application.get("/ping")
    def ping():
        return {"status": "ok"}

    # Annotated here and not in the signature: with postponed annotations FastAPI would look for the names globally.
    async def invocations(request):
        body = await request.body()
        accept = request.headers.get("accept", "application/json")
        try:
            data = inference.input_fn(body, request.headers.get("content-type", "application/json"))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return Response(json.dumps({"error": str(error)}), 400, media_type="application/json")
        reply = inference.output_fn(inference.predict_fn(data, model), accept)
        return Response(reply, media_type="text/csv" if "csv" in accept else "application/json")

    invocations.__annotations__ = {"request": Request}
    application.post("/invocations")(invocations)
    return application


def serve(inference, argv=None):
    """``python inference.py --model-dir D --host H --port N``."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve the model on HTTP.")
    parser.add_argument("--model-dir", default=os.environ.get("SM_MODEL_DIR") or str(HERE))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args(argv)
    uvicorn.run(app(args.model_dir, inference), host=args.host, port=args.port)


# --- MLflow ------------------------------------------------------------------------------------------------------


# Frameworks of which MLflow records a curve while they train, which the script does not see. For the others it only
# repeats what is logged anyway, and takes seconds to start.
_CURVES = {
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "lightning": "pytorch",
    "pytorch_lightning": "pytorch",
    "fastai": "fastai",
}


def start_tracking():
    """Turn on autologging where it is asked for, into the run that MLFLOW_RUN_ID names. Training goes on without.

    NOTEBOOKED_MLFLOW_AUTOLOG: 1 for whatever MLflow knows, auto for those of the imported frameworks that have curves.
    """
    wanted = os.environ.get("NOTEBOOKED_MLFLOW_AUTOLOG")
    curves = list(dict.fromkeys(name for module, name in _CURVES.items() if module in sys.modules))
    if "tensorflow" in curves and "keras" in curves:
        curves.remove("keras")  # its Keras is covered
    if (
        not os.environ.get("MLFLOW_TRACKING_URI")
        or wanted not in ("1", "auto")
        or (wanted == "auto" and not curves)
    ):
        return
    try:
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        # Without a run of ours each `fit` would start and end one of its own.
        mlflow.start_run(run_id=os.environ.get("MLFLOW_RUN_ID"))
        # The model is logged at the end, with its signature and as it is saved.
        if wanted == "1":
            mlflow.autolog(log_models=False, log_datasets=False, silent=True)
        else:
            for name in curves:
                importlib.import_module(f"mlflow.{name}").autolog(log_models=False, silent=True)
    except Exception as error:
        print(f"warning: MLflow autologging is off: {error}", file=sys.stderr)


def log_to_mlflow(folder, description, model, example, predict):
    """Log to the run that MLFLOW_RUN_ID names, or to one of our own. What is trained is saved before this is tried."""
    try:
        import mlflow
    except ImportError:
        print(
            "warning: MLFLOW_TRACKING_URI is set and mlflow is not installed; nothing is logged",
            file=sys.stderr,
        )
        return
    # Its warnings speak of choices made here on purpose (pickle, pinned requirements).
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    joined = os.environ.get("MLFLOW_RUN_ID")
    try:
        run = mlflow.active_run() or mlflow.start_run(run_id=joined)
        # A parameter never changes: what autologging found under the same name stays as it is.
        known = mlflow.get_run(run.info.run_id).data.params
        mlflow.log_params(
            {
                key: str(value)[:500]
                for key, value in description["hyperparameters"].items()
                if key not in known
            }
        )
        mlflow.log_metrics(description["metrics"])
        _log_model(mlflow, folder, description, model, example, predict)
        print(f"logged to MLflow run {run.info.run_id}")
        if not joined:
            mlflow.end_run()
    except Exception as error:
        print(f"warning: not logged to MLflow: {type(error).__name__}: {error}", file=sys.stderr)
        if not joined and mlflow.active_run():
            mlflow.end_run("FAILED")


_FLAVOURS = {
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "torch": "pytorch",
    "statsmodels": "statsmodels",
    "keras": "keras",
}


def _log_model(mlflow, folder, description, model, example, predict):
    flavour = _FLAVOURS.get(description["framework"])
    if flavour is None or model is None:
        return
    signature = None
    if example is not None and not isinstance(example, dict):
        try:
            with warnings.catch_warnings():
                # MLflow's advice on integer columns is for whoever writes a signature by hand.
                warnings.filterwarnings("ignore", message=".*integer column.*", category=UserWarning)
                signature = mlflow.models.infer_signature(_small(example), plain_array(predict(example)))
        except Exception as error:
            print(f"warning: no MLflow signature: {error}", file=sys.stderr)
    module = importlib.import_module(f"mlflow.{flavour}")
    arguments = {
        "sk_model"
        if flavour == "sklearn"
        else {
            "xgboost": "xgb_model",
            "lightgbm": "lgb_model",
            "pytorch": "pytorch_model",
            "statsmodels": "statsmodels_model",
            "keras": "model",
        }[flavour]: model
    }
    if flavour in ("sklearn", "pytorch"):
        arguments["serialization_format"] = "cloudpickle" if flavour == "sklearn" else "pickle"
    pinned = [
        f"{name}=={version}" for name, version in description["packages"].items() if name.lower() in _PINNED
    ]
    module.log_model(**arguments, name="model", signature=signature, pip_requirements=pinned or None)


_PINNED = frozenset(
    {
        "scikit-learn",
        "xgboost",
        "lightgbm",
        "torch",
        "statsmodels",
        "keras",
        "tensorflow",
        "numpy",
        "pandas",
        "joblib",
        "mlflow",
        "cloudpickle",
    }
)


def _small(example):
    value = example[:3] if hasattr(example, "__getitem__") else example
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def plain_array(value):
    """A prediction as NumPy has it, for MLflow's signature."""
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)):
        import numpy

        return numpy.asarray(value)
    return value

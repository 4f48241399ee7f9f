"""Small broken models, each with the check that must catch it; and those that `prepare` itself must refuse.

A beast is a function that gives a release (or raises); `caught_by` keeps it under its check's name."""
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import zoo_models
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from waiting import own_module

from deploy_assist import prepare
from deploy_assist.environment import lock_of

zoo_models.awake = True
ZOO: dict[str, tuple] = {}  # beast -> checks, status, function


def caught_by(*checks: str, status: str = "fail"):
    def keep(f):
        ZOO[f.__name__] = checks, status, f
        return f
    return keep


def table(n=400, seed=0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    "People: bmi, age and sex; whether they fell ill, and what it cost."
    rng = np.random.default_rng(seed)
    age = rng.integers(20, 80, n).astype(float)
    X = pd.DataFrame(dict(bmi=rng.normal(28, 4, n), age=age, sex=rng.choice(["f", "m"], n)))
    cost = X["bmi"].to_numpy() * 2 + rng.normal(0, 2, n)
    return X, (X["bmi"] + rng.normal(0, 2, n) > 28).astype(int).to_numpy(), cost


X, ill, cost = table()
half = len(X) // 2


def halves(X, y): return dict(X=X[:half], y=y[:half], X_test=X[half:], y_test=y[half:])


def pipeline(numbers=("bmi", "age"), encoder=None):
    encode = encoder or OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((StandardScaler(), list(numbers)), (encode, ["sex"]))
    return make_pipeline(columns, LogisticRegression())


def logistic(X=X, y=ill, numbers=("bmi", "age"), **options):
    "A release of an ordinary pipeline on this table."
    given = halves(X, y) | options
    return prepare(pipeline(numbers).fit(given["X"], given["y"]), **given, name="zoo")


def passing(X=X, y=ill, **options):
    "A release that uses bmi alone, whatever else the table holds."
    given = halves(X, y) | options
    model = make_pipeline(make_column_transformer(("passthrough", ["bmi"])), LogisticRegression())
    return prepare(model.fit(given["X"], given["y"]), **given, name="zoo")


def own(kind, y=ill, settings=None, **parameters):
    "A release of a class in zoo_models.py, which travels."
    given = halves(X, y)
    model = getattr(zoo_models, kind)(**parameters).fit(given["X"], given["y"])
    mine = dict(modules=[Path(zoo_models.__file__)], trusted=[f"zoo_models.{kind}"])
    return prepare(model, **given, **mine, name="zoo", settings=settings)


def odd(how, **options): return own("Answers", cost, how=how, **options)


def healthy(folder: Path):
    "A release with which nothing is wrong, not even what most leave out."
    with own_module(folder, "zoo_features", "import numpy as np\n\n\ndef log_age(X): return np.log1p(np.abs(X))\n") as module:
        log_age = module.log_age
    notes = X.assign(note=[f"patient {i} slept {i % 7} hours and felt well" for i in range(len(X))])
    model = make_pipeline(
        make_column_transformer((StandardScaler(), ["bmi"]), (FunctionTransformer(log_age), ["age"]),
                                (OneHotEncoder(handle_unknown="ignore"), ["sex"])), LogisticRegression())
    given = halves(notes, ill)
    release = prepare(model.fit(given["X"], given["y"]), **given, name="zoo", modules=[Path(module.__file__)],
                      trusted=["zoo_features.log_age"], settings={"labels": {"source": "feedback", "delay_days": 30}})
    proof = {"proven": True, "why": "", "max_difference": 0.0}
    engine = json.dumps({"engine": "sklearn", "why": "asked for", "engines": {"sklearn": proof}}).encode()
    return replace(release, parts=release.parts | {"engine.json": engine})


# --- artefact

@caught_by("artefact.fresh_process")
def reads_a_file():
    Path("cut.txt").write_text("28")
    return own("ReadsFile")


@caught_by("artefact.fresh_process")
def reads_the_environment():
    os.environ["ZOO_CUT"] = "28"
    return own("ReadsEnvironment")


@caught_by("artefact.modules", status="warn")
def module_that_opens_files(): return reads_a_file()


@caught_by("artefact.repeatable")
def counts_its_calls(): return odd("stateful")


@caught_by("artefact.repeatable")
def centres_each_batch(): return odd("batch")


@caught_by("artefact.repeatable")
def writes_into_its_input(): return odd("writes")


@caught_by("artefact.fresh_process")
def random_answers(): return odd("random")


@caught_by("artefact.answers")
def answers_nan():
    release = odd("fine")
    release.model.how = "nan"
    return release


@caught_by("artefact.answers")
def answers_no_class(): return own("Stranger")


@caught_by("artefact.answers")
def two_answers_a_row():
    release = odd("fine")
    release.model.how = "column"
    return release


@caught_by("artefact.types", status="warn")
def a_type_of_ones_own(): return own("Threshold")


@caught_by("artefact.deterministic", status="warn")
def changed_after_prepare():
    release = logistic()
    release.model[-1].intercept_ = release.model[-1].intercept_ + 1
    return release


@caught_by("artefact.size")
def huge():
    forest = RandomForestClassifier(60, random_state=0)
    model = make_pipeline(make_column_transformer(("passthrough", ["bmi", "age"])), forest)
    given = halves(X, ill)
    return prepare(model.fit(given["X"], given["y"]), **given, name="zoo", settings={"limits": {"bundle_mb": 0.1}})


@caught_by("artefact.requirements", status="warn")
def loose_requirements(): return replace(logistic(), requirements=("numpy", "scikit-learn>=1"))


@caught_by("artefact.engine")
def unproven_engine():
    proof = {"proven": False, "why": "differs by 0.04", "max_difference": 0.04}
    told = {"engine": "onnx", "why": "fast", "engines": {"onnx": proof}}
    return replace(logistic(), parts={"engine.json": json.dumps(told).encode()})


# --- data

@caught_by("data.target")
def target_under_another_name(): return passing(X.assign(status=pd.Series(ill).map({0: "home", 1: "ward"})))


@caught_by("data.target")
def target_in_other_units():
    model = make_pipeline(make_column_transformer(("passthrough", ["bmi"])), LinearRegression())
    given = halves(X.assign(cents=cost * 100 + 7), cost)
    return prepare(model.fit(given["X"], given["y"]), **given, name="zoo")


@caught_by("data.leakage")
def known_after_the_outcome():
    days = np.where(ill == 1, np.random.default_rng(1).integers(1, 30, len(X)), 0)
    return passing(X.assign(days_in_hospital=days))


@caught_by("data.leakage")
def far_from_the_middle_is_ill():
    side = np.random.default_rng(1).choice([-1, 1], len(X))
    return passing(X.assign(shift=side * (1 + 3 * ill) + np.random.default_rng(2).normal(0, 0.1, len(X))))


@caught_by("data.id_like", status="warn")
def an_id(): return passing(X.assign(patient_id=np.arange(1000, 1000 + len(X))))


@caught_by("data.duplicates")
def tested_on_training_rows(): return passing(X_test=X[:half], y_test=ill[:half])


@caught_by("data.conflicts", status="warn")
def coin_flips():
    few = pd.DataFrame(dict(bmi=np.arange(len(X)) % 10 + 20.0))
    return passing(few, np.random.default_rng(0).integers(0, 2, len(X)))


@caught_by("data.constant", status="warn")
def one_value_only(): return passing(X.assign(country="DE"))


@caught_by("data.labels", status="warn")
def rare_class():
    rare = np.where(np.arange(len(X)) % 100 == 3, 2, ill)
    return passing(X, rare)


@caught_by("data.preprocessing", status="warn")
def scaled_outside():
    scaled = X.assign(bmi=(X["bmi"] - X["bmi"].mean()) / X["bmi"].std(ddof=0))
    return passing(scaled)


@caught_by("data.preprocessing", status="warn")
def one_hot_outside(): return passing(pd.get_dummies(X, columns=["sex"], dtype=int))


@caught_by("data.shift", status="warn")
def tested_on_other_people(): return passing(X_test=X[half:].assign(age=X["age"] + 30), y_test=ill[half:])


# --- contract

@caught_by("contract.missing_value", "contract.unseen_category")
def promises_what_it_cannot_keep():
    given = halves(X, ill)
    release = prepare(pipeline(encoder=OneHotEncoder()).fit(given["X"], given["y"]), **given, name="zoo")
    return release.edit("bmi", nullable=True).edit("sex", unseen="pass")


@caught_by("contract.extremes")
def crashes_below_zero(): return odd("negative")


# --- performance

@caught_by("performance.latency", "performance.memory", "operations.disk", "performance.throughput")
def expensive():
    limits = {"memory_mb": 480.0, "rows_per_day": 10**12, "requests_per_core_s": 100.0}
    return odd("expensive", settings={"slo": {"p95_ms": 10.0}, "limits": limits})


@caught_by("performance.start")
def wakes_late(): return odd("wakes late", settings={"limits": {"start_s": 3.0}})


@caught_by("performance.health", status="warn")
def holds_the_lock(): return odd("holds the lock")


# --- quality

@caught_by("quality.baseline")
def worse_than_a_guess(): return own("Inverted")


@caught_by("quality.baseline")
def constant(): return odd("constant")


@caught_by("quality.baseline", status="warn")
def never_tested():
    given = halves(X, ill)
    return prepare(pipeline().fit(given["X"], given["y"]), given["X"], given["y"], name="zoo")


@caught_by("quality.calibration", status="warn")
def always_sure(): return own("Sure")


@caught_by("quality.slices")
def unfair_to_women(): return own("Unfair")


# --- operations

@caught_by("operations.drift_baseline", status="warn")
def forty_rows(): return logistic(X=X[:40], y=ill[:40], X_test=None, y_test=None)


@caught_by("operations.labels", status="warn")
def nobody_knows_the_outcome(): return logistic()


@caught_by("operations.rollback", status="warn")
def the_first_of_its_name(): return logistic()


@caught_by("operations.locked", status="warn")
def no_lock():
    release = logistic()
    return replace(release, parts={k: v for k, v in release.parts.items() if k != "requirements.lock"})


@caught_by("operations.locked")
def lock_of_another_model():
    release = logistic()
    return replace(release, parts=release.parts | {"requirements.lock": lock_of(["click"])})


# --- privacy

@caught_by("privacy.columns")
def mail_addresses(): return passing(X.assign(contact=[f"p{i}@example.org" for i in range(len(X))]))


@caught_by("privacy.examples")
def mail_in_a_category(): return passing(X.assign(doctor=np.resize(["ward", "a@example.org", "gp"], len(X))))


@caught_by("privacy.text")
def mail_in_a_text():
    return passing(X.assign(note=[f"wrote from p{i}@example.org on day {i} of the stay" for i in range(len(X))]))


@caught_by("privacy.baseline", status="warn")
def hashed_but_kept(): return mail_addresses().edit("contact", policy="hash")


# --- what prepare refuses: beast -> what the error says

REFUSED: dict[str, tuple] = {}


def refused(said: str):
    def keep(f):
        REFUSED[f.__name__] = said, f
        return f
    return keep


@refused("which only this notebook knows")
def a_lambda():
    model = make_pipeline(make_column_transformer((FunctionTransformer(lambda x: x), ["bmi"])), LogisticRegression())
    return prepare(model.fit(X, ill), X, ill, name="zoo")


@refused("not on the list of trusted types")
def an_unknown_type(): return prepare(zoo_models.Threshold().fit(X, ill), X, ill, name="zoo")


@refused("unfitted")
def never_fitted(): return prepare(pipeline(), X, ill, name="zoo")


@refused("67 of 200 answers to X_test are not finite")
def nan_for_an_answer(): return odd("nan")


@refused("missing labels")
def missing_labels(): return prepare(pipeline().fit(X, ill), X, np.where(ill == 1, 1.0, np.nan), name="zoo")


@refused("mixed types")
def mixed_types():
    mixed = X.assign(bmi=pd.Series(["28", 27.5] * half, dtype=object))
    return prepare(pipeline().fit(X, ill), mixed, ill, name="zoo")


@refused("predict failed")
def other_columns(): return prepare(pipeline().fit(X, ill), X.rename(columns={"age": "years"}), ill, name="zoo")

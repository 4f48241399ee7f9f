"""Nine unlike tables, each with a fitted model: what a demo page must draw without a line of the user's code.

TABLES holds name -> function that returns a release; `mixed` and `vectors` have a field of every kind between them."""
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

import zoo_models
from deploy_assist import Release, prepare

TABLES: dict = {}


def table(function):
    TABLES[function.__name__] = function
    return function


def split(model, X, y, name, **options) -> Release:
    "Fitted on two thirds, tested on the rest."
    X, y = X.reset_index(drop=True) if hasattr(X, "reset_index") else X, pd.DataFrame(y) if np.ndim(y) > 1 else pd.Series(y)
    test = np.arange(len(X)) % 3 == 0
    def part(v, rows): return v[rows] if hasattr(v, "loc") else [x for x, r in zip(v, rows) if r]
    model.fit(part(X, ~test), part(y, ~test))
    return prepare(model, part(X, ~test), part(y, ~test), name=name, X_test=part(X, test), y_test=part(y, test), **options)


def guests(n: int = 300) -> pd.DataFrame:
    "Hotel guests: numbers with and without gaps, a flag, categories few and many, a text, a date and a time."
    rng = np.random.default_rng(5)
    day = [date(2025, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 500, n)]
    towns = "Aarhus Bergen Cork Delft Evora Faro Ghent Haarlem Iasi Jena Kaunas Lund Malaga".split()
    words = "quiet room please, near the lift and the garden, late arrival by train with a bicycle".split()
    return pd.DataFrame(dict(
        nights=rng.integers(1, 15, n),
        price=np.where(rng.random(n) < 0.15, np.nan, rng.gamma(5, 22, n).round(2)),
        rating=rng.integers(2, 11, n) / 2,
        breakfast=rng.random(n) < 0.6,
        returning=pd.array(np.where(rng.random(n) < 0.2, None, rng.random(n) < 0.4), dtype="boolean"),
        channel=pd.Series(rng.choice(["web", "phone", "agency"], n)).mask(rng.random(n) < 0.1),
        town=rng.choice(towns, n),
        wish=[" ".join(rng.choice(words, 8)) for _ in range(n)],
        arrival=pd.Series(day, dtype=object),
        booked=pd.to_datetime(pd.Series(day)) - pd.to_timedelta(rng.integers(100, 90_000, n), unit="min"),
        email=[f"guest{i}@example.org" for i in range(n)],
    ))


def of_guests():
    "A pipeline that reads the numbers, the flag, the channel and the town of `guests`."
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    return make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(), StandardScaler()), ["nights", "price", "rating"]),
            ("passthrough", ["breakfast"]),
            (OneHotEncoder(handle_unknown="ignore"), ["channel", "town"])),
        LogisticRegression(max_iter=1000))


@table
def mixed() -> Release:
    X = guests()
    cancels = (X.price.fillna(110) + 12 * X.nights - 60 * X.breakfast + 50 * (X.channel == "web")) > 200
    edits = dict(email=dict(sensitivity="email", policy="hash"), channel=dict(help="how the booking came in"))
    return split(of_guests(), X, np.where(cancels, "cancels", "stays"), "bookings", units=dict(price="EUR", nights="nights"),
                 limits=dict(nights=(1, 30), rating=(0, 5)), edits=edits)


@table
def thirty() -> Release:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    data = load_breast_cancer(as_frame=True)
    y = data.target.map(dict(enumerate(data.target_names)))
    return split(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), data.data, y, "tumours")


@table
def texts() -> Release:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    rng = np.random.default_rng(0)
    good, bad = "great lovely warm bright kind friendly fresh".split(), "cold dirty loud rude late broken stale".split()
    both = "the room and the bed were with a staff that at breakfast in this hotel seemed".split()
    X, y = [], []
    for i in range(240):
        side = good if i % 2 else bad
        X.append(" ".join(rng.permutation([*rng.choice(side, 3), *rng.choice(both, 9)])))
        y.append("praise" if i % 2 else "complaint")
    return split(make_pipeline(TfidfVectorizer(), LogisticRegression()), pd.Series(X, name="review"), y, "reviews")


@table
def digits() -> Release:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    data = load_digits(as_frame=True)
    return split(LogisticRegression(max_iter=60, tol=0.01), data.data[:900], data.target[:900], "digits")


@table
def wide() -> Release:
    from sklearn.linear_model import Ridge
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(300, 200)).round(3), columns=[f"sensor_{i:03d}" for i in range(200)])
    y = 5 * X["sensor_150"] - 3 * X["sensor_042"] + X["sensor_007"] + rng.normal(0, 0.5, 300)
    return split(Ridge(), X, y, "plant")


@table
def classes() -> Release:
    from sklearn.datasets import load_wine
    from sklearn.ensemble import RandomForestClassifier
    data = load_wine(as_frame=True)
    y = data.target.map({0: "Barolo", 1: "Grignolino", 2: "Barbera d'Asti"})
    return split(RandomForestClassifier(20, max_depth=4, random_state=0), data.data, y, "wines")


@table
def several() -> Release:
    from sklearn.linear_model import LinearRegression
    rng = np.random.default_rng(2)
    X = pd.DataFrame(dict(area=rng.uniform(40, 200, 200).round(1), rooms=rng.integers(1, 8, 200), age=rng.integers(0, 90, 200)))
    y = pd.DataFrame(dict(heating=3 * X.area + 2 * X.age, cooling=X.area - 0.4 * X.age + 4 * X.rooms, water=20.0 * X.rooms))
    return split(LinearRegression(), X, y + rng.normal(0, 5, y.shape), "energy", units=dict(area="m²", age="years"),
                 limits=dict(rooms=(1, 12), age=(0, 150)))


@table
def dates() -> Release:
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.compose import make_column_transformer
    rng, n = np.random.default_rng(3), 260
    day = pd.date_range("2024-01-01", periods=n, freq="D")
    X = pd.DataFrame(dict(
        day=pd.Series(day.date, dtype=object),
        reading=pd.Series(day + pd.to_timedelta(rng.integers(0, 86_000, n), unit="s")).dt.tz_localize("UTC"),
        service=pd.Series([d.date() if rng.random() < 0.5 else None for d in day - pd.Timedelta("30D")], dtype=object),
        load=rng.normal(50, 9, n).round(1)))
    model = make_pipeline(make_column_transformer(("passthrough", ["load"])), LinearRegression())
    return split(model, X, 3 * X["load"] + rng.normal(0, 4, n), "demand", units=dict(load="MW"))


@table
def vectors() -> Release:
    rng, n = np.random.default_rng(4), 90
    embedding = [[round(float(v), 2) for v in rng.normal(size=4)] for _ in range(n)]
    X = pd.DataFrame(dict(bmi=rng.normal(28, 3, n).round(1), embedding=embedding))
    return split(zoo_models.Threshold(), X, (X.bmi > 28).astype(int), "vectors", modules=[Path(zoo_models.__file__)],
                 trusted=["zoo_models.Threshold"])

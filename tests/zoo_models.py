"Broken models of the zoo. This file travels with them, as a person's own module would."
import os
import time

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin


awake = False  # true in the process that made the zoo, where the late and the greedy behave
held: list = []


class Threshold(ClassifierMixin, BaseEstimator):
    "Says 1 when bmi is above 28. Fine by itself; the broken ones below inherit from it."
    def fit(self, X, y):
        self.classes_, self.cut_ = np.unique(y), 28.0
        return self

    def predict(self, X): return (X["bmi"].to_numpy() > self.cut_).astype(int)

    def predict_proba(self, X):
        p = 1 / (1 + np.exp(-(X["bmi"].to_numpy() - self.cut_)))
        return np.column_stack([1 - p, p])


class Answers(RegressorMixin, BaseEstimator):
    "A regressor whose answers are broken in the way of `how`."
    def __init__(self, how="fine"): self.how = how

    def fit(self, X, y):
        self.mean_, self.calls_ = float(np.mean(y)), 0
        return self

    def predict(self, X):
        out = X["bmi"].to_numpy(dtype=float) * 2
        if self.how == "nan": out[::3] = np.nan
        if self.how == "random": out = out + np.random.default_rng().normal(size=len(out))
        if self.how == "stateful":
            self.calls_ += 1
            out = out + self.calls_
        if self.how == "batch": out = out - out.mean()
        if self.how == "writes": X["bmi"] = X["bmi"] * 2
        if self.how == "constant": out[:] = self.mean_
        if self.how == "column": out = np.column_stack([out, out])
        if self.how == "negative" and (X["bmi"] < 0).any(): raise ValueError("bmi cannot be negative")
        if self.how == "expensive":
            end = time.thread_time() + 0.015
            while time.thread_time() < end: pass
        if self.how == "holds the lock" and len(X) > 1000: sum(range(150_000_000))
        if self.how == "wakes late" and not awake: time.sleep(4)
        if self.how == "expensive" and not awake and not held: held.append(np.ones(50_000_000))  # 400 MB
        return out


class ReadsFile(Threshold):
    "Reads its cut from a file that only this machine has."
    def predict(self, X):
        with open("cut.txt") as file: cut = float(file.read())
        return (X["bmi"].to_numpy() > cut).astype(int)


class ReadsEnvironment(Threshold):
    "Reads its cut from an environment variable."
    def predict(self, X): return (X["bmi"].to_numpy() > float(os.environ["ZOO_CUT"])).astype(int)


class Stranger(Threshold):
    "Answers with a label that is no class."
    def predict(self, X): return np.where(X["bmi"].to_numpy() > 33, 7, super().predict(X))


class Sure(Threshold):
    "Right as often as its like, and always certain."
    def predict_proba(self, X):
        p = super().predict(X).astype(float)
        return np.column_stack([1 - p, p])


class Unfair(Threshold):
    "Right, but for women the other way round."
    def predict(self, X):
        out = super().predict(X)
        return np.where(X["sex"].to_numpy() == "f", 1 - out, out)

    def predict_proba(self, X):
        p = self.predict(X) * 0.8 + 0.1
        return np.column_stack([1 - p, p])


class Inverted(Threshold):
    "Worse than a guess."
    def predict(self, X): return 1 - super().predict(X)

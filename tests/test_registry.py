"""The registry on real SQLite files, and on `mlflow server` with basic auth and PostgreSQL."""
import multiprocessing
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from deploy_assist import registry
from deploy_assist.errors import BundleError, ConfigError, RegistryError
from deploy_assist.registry import (
    ModelVersion,
    current_version,
    history,
    production_at,
    promote,
    record_checks,
    register,
    resolve,
    rollback,
    versions,
)
from deploy_assist.release import load_release


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    "The address of one SQLite registry for this file; its folder is never the current one."
    return f"sqlite:///{tmp_path_factory.mktemp('a registry')}/mlflow.db"


@pytest.fixture
def two(store):
    "Makes two versions without artifacts under a name of the test's own, the second with the alias `challenger`."
    def make(name, count=2, uri=store, **tags):
        with registry._talk(uri, create=True) as (client, _):
            registry._ensure_model(client, uri, name)
            made = [client.create_model_version(name, f"s3://nowhere/{i}", tags=tags) for i in range(count)]
        promote(name, count, alias="challenger", reason="trained", uri=uri)
        return [registry._version_of(mv, uri) for mv in made]
    return make


def moves(name, uri):
    return history(name, uri=uri)[["action", "alias", "version", "previous"]].values.tolist()


# --- SQLite

@pytest.mark.filterwarnings("error::UserWarning")
def test_register_writes_everything_beside_the_database(patients, store, tmp_path, capfd):
    name = "all of it"
    v = register(replace(patients, name=name), description="first", tags={"team": "ward B"}, uri=store)
    assert capfd.readouterr() == ("", "")
    assert (v.name, v.version, v.uri, v.alias) == (name, "1", "models:/all of it/1", "challenger")
    assert os.listdir(tmp_path) == [], "the current folder stays clean"
    assert sorted(os.listdir(registry._sqlite_file(store).parent)) == ["mlflow.db", "mlruns"]
    assert registry._client(store).get_experiment("0").artifact_location.startswith(str(registry.artifact_root(store)))

    client = registry._client(store)
    run, auc = client.get_run(v.run_id), patients.metrics["roc_auc"]
    assert run.info.status == "FINISHED"
    assert run.data.params["logisticregression__max_iter"] == "1000"
    assert [run.data.metrics[k] for k in ("roc_auc", "roc_auc_low", "roc_auc_high")] == [
        auc["value"],
        auc["low"],
        auc["high"],
    ]
    assert {(d.dataset.name, d.tags[0].value) for d in run.inputs.dataset_inputs} == {
        (f"{name}-test", "test"),
        (f"{name}-baseline", "baseline"),
    }
    files = {a.path for part in (None, "plots") for a in client.list_artifacts(v.run_id, part)}
    assert files >= {"schema.json", "requirements.txt", "plots/roc.png", "plots/confusion.png", "plots/features.png"}
    model = client.get_logged_model(v.model_id)
    assert (str(model.status), model.source_run_id, model.model_type) == ("READY", v.run_id, "classification")
    assert "roc_auc" in {m.key for m in model.metrics} and [o.model_id for o in run.outputs.model_outputs] == [
        v.model_id
    ]
    mv = client.get_model_version(name, "1")
    assert (mv.tags["deploy_assist.hash"], mv.tags["team"], mv.description, mv.run_id) == \
        (replace(patients, name=name).hash, "ward B", "first", v.run_id)
    assert name in v._repr_html_() and "not run" in v._repr_html_() and "version 1 @challenger" in repr(v)


def test_mlflow_loads_what_was_registered(patients, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(RegistryError, match="no registry yet"): history("patients")
    assert os.listdir(tmp_path) == [], "a question makes no registry"
    assert register(patients).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    import mlflow
    X = patients.X_test
    expected = patients.predict(X).tolist()
    for uri in ("models:/patients@challenger", "models:/patients/1"):
        assert mlflow.sklearn.load_model(uri).predict(X).tolist() == expected
    loaded = mlflow.pyfunc.load_model("models:/patients@challenger")
    found = resolve("models:/patients@challenger")
    assert loaded.predict(X).tolist() == expected
    assert loaded.metadata.model_id == found.model_id and loaded.metadata.signature is not None
    assert mlflow.active_run() is None and os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///mlflow.db"
    again = load_release(found.folder)  # MLflow left a note of its own in the folder: the bundle is as it was
    assert again.hash == patients.hash and again.predict(X).tolist() == expected
    assert found.folder.is_relative_to(tmp_path / "mlruns") and (found.name, found.version, found.alias) == (
        "patients",
        "1",
        "challenger",
    )
    assert resolve("models:/patients/latest").version == "1"


def test_a_saved_bundle_is_registered_as_it_is(bundle, store, patients):
    v = register(bundle, uri=store, alias=None)
    assert v.alias is None and registry._client(store).get_registered_model("patients").aliases == {}
    assert load_release(resolve(v.uri, uri=store).folder).hash == patients.hash
    local = resolve(bundle)
    assert (local.folder, local.name, local.version) == (bundle, "patients", patients.hash[:12])
    with pytest.raises(BundleError, match="without bundle.json"): register("nowhere", uri=store)


@pytest.mark.parametrize("kind", ["regression", "three classes", "no test set"])
def test_other_tasks(kind, store, recwarn):
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LinearRegression, LogisticRegression

    from deploy_assist import prepare
    X, y = load_iris(return_X_y=True, as_frame=True)
    y = X.pop("sepal width (cm)") if kind == "regression" else y.map({0: "setosa", 1: "versi", 2: "virginica"})
    model = (LinearRegression() if kind == "regression" else LogisticRegression(max_iter=2000)).fit(X, y)
    test = {} if kind == "no test set" else dict(X_test=X[::3], y_test=y[::3])
    v = register(prepare(model, X, y, name=f"iris {kind}", **test), uri=store)
    plots = {Path(a.path).stem for a in registry._client(store).list_artifacts(v.run_id, "plots")}
    assert plots >= ({"features", "predicted_actual", "residuals"} if kind == "regression" else {"features"})
    assert ("confusion" in plots) == (kind == "three classes") and not [
        w for w in recwarn if "left out" in str(w.message)
    ]


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "team@model", "what?", "50%", "..", "x"*201, None])
def test_a_name_that_mlflow_refuses_is_refused_before_anything_is_written(patients, name, tmp_path):
    with pytest.raises(ConfigError, match="such as 'chronic-risk'"): register(replace(patients, name=name))
    with pytest.raises(ConfigError, match="such as 'chronic-risk'"): promote(name, 1, reason="x")
    with pytest.raises(ConfigError, match="such as 'champion'"): register(patients, alias="latest")
    assert os.listdir(tmp_path) == []


def test_promote_and_roll_back(two, store):
    two("moved about")
    assert promote("moved about", 1, reason="first", uri=store).version == "1"
    assert promote("moved about", reason="the challenger", uri=store, who="ana") == \
        ModelVersion("moved about", "2", alias="champion", tracking_uri=store)
    before = datetime.now(UTC)
    assert promote("moved about", 2, reason="again", uri=store).version == "2", "it is there already: no event"
    assert (
        rollback("moved about", reason="scores above 0.9", uri=store).version
        == current_version("moved about", uri=store)
        == "1"
    )
    with pytest.raises(RegistryError, match="nothing to roll back to: version 1 is the first"):
        rollback("moved about", reason="x", uri=store)
    assert moves("moved about", store) == [
        ["promote", "challenger", "2", None], ["promote", "champion", "1", None], ["promote", "champion", "2", "1"],
        ["rollback", "champion", "1", "2"]]
    told = history("moved about", alias="champion", uri=store)
    assert told.reason.tolist() == ["first", "the challenger", "scores above 0.9"] and told.who[3 - 2] == "ana"
    assert str(told.time.dtype) == "datetime64[ns, UTC]" and told.time.is_monotonic_increasing
    then = production_at("moved about", before, uri=store)
    assert (then.version, then.who, then.reason) == ("2", "ana", "the challenger")
    assert production_at("moved about", "2001-01-01", uri=store) is None
    table = versions("moved about", uri=store)
    assert table[["version", "aliases"]].values.tolist() == [["2", "challenger"], ["1", "champion"]]


def test_a_reason_is_required(store):
    for reason in ("", " \n", None):
        with pytest.raises(ConfigError, match="a reason is needed"): promote("moved about", 1, reason=reason, uri=store)
        with pytest.raises(ConfigError, match="a reason is needed"): rollback("moved about", reason=reason, uri=store)
    with pytest.raises(ConfigError, match="at most 2000"): promote("moved about", 1, reason="x"*2001, uri=store)


def test_unknown_names_are_answered_with_known_ones(two, store):
    two("known")
    with pytest.raises(RegistryError, match="no model 'unknown' in the registry: it holds .*'known'"):
        promote("unknown", reason="x", uri=store)
    with pytest.raises(RegistryError, match=r"no version '7': it has 1, 2"): promote("known", 7, reason="x", uri=store)
    with pytest.raises(RegistryError, match=r"no version 'x1': it has 1, 2"):
        promote("known", "x1", reason="x", uri=store)
    with pytest.raises(RegistryError, match=r"no alias 'champion': it has challenger \(version 2\)"):
        current_version("known", uri=store)
    with pytest.raises(RegistryError, match="no alias 'champion'"): resolve("models:/known@champion", uri=store)
    with pytest.raises(ConfigError, match="a version of 'other'"):
        promote("known", ModelVersion("other", "1"), reason="x", uri=store)


def test_failed_checks_keep_a_version_out(patients, two, store):
    failed = dict(passed=False, results=[dict(name="parity", status="fail"), dict(name="size", status="pass")])
    two("unfit", count=1)
    v = register(replace(patients, name="unfit"), checks=failed, uri=store)
    assert v.checks_passed is False and history("unfit", uri=store).checks_passed.iloc[-1] == False  # noqa: E712
    with pytest.raises(ConfigError, match="a reason is needed"): promote("unfit", reason=" ", uri=store)
    assert versions("unfit", uri=store).checks_failed.tolist() == ["parity", ""]
    with pytest.warns(UserWarning, match=r"unfit version 2 failed its checks \(parity\), and is champion now"):
        promote("unfit", reason="demo on Monday", uri=store)
    assert history("unfit", uri=store).iloc[-1][["checks_passed", "reason"]].tolist() == [False, "demo on Monday"]
    assert record_checks("unfit", 1, dict(passed=True, results=[]), uri=store).checks_passed is True
    promote("unfit", 1, reason="fixed", uri=store)
    assert history("unfit", uri=store).checks_passed.iloc[-1]
    assert versions("unfit", uri=store).checks_passed.tolist() == [False, True]


def test_of_two_who_promote_at_once_one_is_told(two, store, monkeypatch):
    two("contested", 3)
    promote("contested", 1, reason="first", uri=store)
    append, rival = registry._append, [True]

    def slow(*args, **facts):  # a rival promotes after we looked and before we write
        if rival.pop() if rival else False:
            promote("contested", 2, reason="I was faster", who="ben", uri=store)
        return append(*args, **facts)

    monkeypatch.setattr(registry, "_append", slow)
    with pytest.raises(RegistryError, match=r"moved to version 2 by ben at .* \(I was faster\) while you were at it"):
        promote("contested", 3, reason="slow", uri=store)
    assert current_version("contested", uri=store) == "2"
    assert [m[:3] for m in moves("contested", store)][-1] == ["promote", "champion", "2"]
    with pytest.raises(RegistryError, match="is version 2, not 1 as expected"):
        promote("contested", 3, reason="x", expected=1, uri=store)
    promote("contested", 1, reason="x", expected="2", uri=store)


def test_a_move_of_another_alias_at_once_is_no_conflict(two, store, monkeypatch):
    two("busy")
    append, rival = registry._append, [True]

    def slow(*args, **facts):
        if rival.pop() if rival else False: promote("busy", 1, alias="canary", reason="ten percent", uri=store)
        return append(*args, **facts)

    monkeypatch.setattr(registry, "_append", slow)
    promote("busy", 2, reason="all", uri=store)
    assert [m[1:3] for m in moves("busy", store)][-2:] == [["canary", "1"], ["champion", "2"]]


def test_an_interrupted_move_is_finished_by_the_next(two, store, monkeypatch):
    two("interrupted")
    promote("interrupted", 1, reason="first", uri=store)
    with monkeypatch.context() as m:
        m.setattr(registry, "_point", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt): promote("interrupted", 2, reason="closed the laptop", uri=store)
    assert (
        current_version("interrupted", uri=store) == "1"
        and history("interrupted", uri=store).state.iloc[-1] == "pending"
    )
    with pytest.raises(RegistryError, match="is version 2, not 1 as expected"):
        promote("interrupted", 1, reason="x", expected=1, uri=store)
    assert (
        current_version("interrupted", uri=store) == "2" and history("interrupted", uri=store).state.iloc[-1] == "done"
    )


def test_moves_made_in_mlflow_are_noted(two, store):
    two("by hand")
    promote("by hand", 1, reason="first", uri=store)
    client = registry._client(store)
    client.set_registered_model_alias("by hand", "champion", "2")
    assert history("by hand", uri=store).iloc[-1][["action", "version", "state"]].tolist() == [
        "moved",
        "2",
        "unrecorded",
    ]
    assert rollback("by hand", reason="who did that?", uri=store).version == "1"
    assert moves("by hand", store)[-2:] == [["moved", "champion", "2", "1"], ["rollback", "champion", "1", "2"]]
    client.delete_registered_model_alias("by hand", "champion")
    promote("by hand", 2, reason="it was gone", uri=store)
    assert moves("by hand", store)[-2:] == [["moved", "champion", None, "1"], ["promote", "champion", "2", None]]
    client.delete_model_version("by hand", "1")
    with pytest.raises(RegistryError, match="nothing to roll back to"): rollback("by hand", reason="x", uri=store)


def test_a_history_that_was_deleted_in_mlflow(two, store):
    two("tidied up")
    client = registry._client(store)
    client.delete_run(client.get_registered_model("tidied up").tags["deploy_assist.history"])
    promote("tidied up", 1, reason="first", uri=store)
    assert moves("tidied up", store)[0][:3] == ["promote", "challenger", "2"], "the bin gave it back"
    client.set_registered_model_tag("tidied up", "deploy_assist.history", "0"*32)
    with pytest.warns(UserWarning, match="it begins anew"): promote("tidied up", 2, reason="second", uri=store)
    told = history("tidied up", alias="champion", uri=store)
    assert told[["action", "version", "previous"]].values.tolist() == [["moved", "1", None], ["promote", "2", "1"]]


@pytest.fixture
def no_pictures(monkeypatch): monkeypatch.setattr(registry, "_plots", lambda release: {})


def test_a_full_disk_is_an_error_of_ours(patients, store, monkeypatch, no_pictures):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(registry._client(store)._client, "log_model_artifacts", full)
    with pytest.raises(RegistryError, match="No space left"): register(replace(patients, name="large"), uri=store)


def test_a_model_that_others_registered(store, tmp_path):
    import mlflow
    from sklearn.linear_model import LinearRegression
    path = tmp_path/"theirs"
    mlflow.sklearn.save_model(LinearRegression().fit([[0.], [1.]], [0., 1.]), path, pip_requirements=["scikit-learn"])
    client = registry._client(store)
    client.create_registered_model("theirs"), client.create_model_version("theirs", str(path))
    client.set_registered_model_alias("theirs", "champion", "1"), client.create_model_version("theirs", str(path))
    assert history("theirs", uri=store)[["action", "version", "state"]].values.tolist() == [
        ["moved", "1", "unrecorded"]
    ]
    promote("theirs", 2, reason="ours now", uri=store)
    assert moves("theirs", store) == [["moved", "champion", "1", None], ["promote", "champion", "2", "1"]]
    assert resolve("models:/theirs@champion", uri=store).folder == path


@pytest.mark.parametrize(
    "step", ["log_artifacts", "log_model_artifacts", "create_model_version", "set_registered_model_alias"]
)
def test_what_fails_half_way_leaves_no_version(patients, store, monkeypatch, no_pictures, step):
    from mlflow.exceptions import MlflowException
    name, client = f"broken {step}", registry._client(store)._client
    with monkeypatch.context() as m:
        def fail(*args, **kwargs): raise MlflowException("the disk is full")
        m.setattr(client, step, fail)
        with pytest.raises(RegistryError, match="the disk is full"): register(replace(patients, name=name), uri=store)
    experiment = client.get_experiment_by_name(name).experiment_id
    runs = [r for r in client.search_runs([experiment]) if not r.info.run_name.startswith("history")]
    assert [r.info.status for r in runs] == ["FAILED"]
    assert not client.search_model_versions(f"name='{name}'") and not client.search_logged_models([experiment])
    assert register(replace(patients, name=name), uri=store).version == (
        "2" if step == "set_registered_model_alias" else "1"
    )
    assert history(name, uri=store).state.tolist()[-1] == "done"


def _in_child(uri, number, answers):
    try:
        with registry._talk(uri, create=True) as (client, _):
            experiment = registry._experiment(client, uri, "together")
            for _ in range(10): client.create_run(experiment)
            registry._ensure_model(client, uri, "together")
            version = client.create_model_version("together", "/nowhere").version
        promote("together", version, reason=f"child {number}", uri=uri)
        answers.put((number, str(version)))
    except BaseException as e: answers.put((number, repr(e)))


def test_four_processes_that_start_together(tmp_path):
    registry._mlflow()  # children share what is imported
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    fork, uri = multiprocessing.get_context("fork"), f"sqlite:///{tmp_path}/new/mlflow.db"
    answers = fork.Queue()
    children = [fork.Process(target=_in_child, args=(uri, i, answers)) for i in range(4)]
    for child in children: child.start()
    said = [answers.get(timeout=60) for _ in children]
    for child in children: child.join(20)
    won = [v for _, v in said if v.isdigit()]
    assert won and all("while you were at it" in v for _, v in said if not v.isdigit()), said
    told = history("together", uri=uri)
    assert sorted(told.version) == sorted(won) and set(told.state) == {"done"} and set(told.action) == {"promote"}
    assert told.previous.tolist() == [None, *told.version[:-1]], "each knew the one before"
    assert current_version("together", uri=uri) == told.version.iloc[-1]


# --- registries that do not answer

def test_a_registry_that_is_away_is_noticed_soon(free_port, monkeypatch):
    monkeypatch.setattr(registry, "_patience_s", 1)
    with socket.socket() as silent:  # takes the connection and never answers
        silent.bind(("127.0.0.1", 0)), silent.listen()
        for uri in (f"http://127.0.0.1:{free_port}", f"http://127.0.0.1:{silent.getsockname()[1]}",
                    f"postgresql+psycopg://ana:secret@127.0.0.1:{free_port}/mlflow"):
            for ask in (
                partial(promote, "patients", 1, reason="x", uri=uri),
                partial(current_version, "patients", uri=uri),
            ):
                began = time.monotonic()
                with pytest.raises(RegistryError, match="does not answer") as e: ask()
                assert time.monotonic() - began < 5 and "secret" not in str(e.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path/"mlflow.db").write_text("notes, and then some more notes to fill the header of a database")
    began = time.monotonic()
    with pytest.raises(RegistryError, match="not a database"): history("patients")
    assert time.monotonic() - began < 5


# --- a server with basic auth and PostgreSQL

class Server:
    "`mlflow server` on loopback, with the users `admin`, `ana` and `ben`, who may read what others made."

    def __init__(self, folder: Path, backend: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url, self.log, self.password = f"http://127.0.0.1:{port}", folder/"log", "a long password"
        (folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
            "admin_username = admin\nauthorization_function = "
            "mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
        )  # else 0.1 s a call
        env = {"MLFLOW_AUTH_CONFIG_PATH": str(folder/"auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
               "MLFLOW_FLASK_SERVER_SECRET_KEY": "test", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        words = ["server", "--app-name", "basic-auth", "--backend-store-uri", backend, "--workers", "1",
                 "--artifacts-destination", str(folder/"artifacts"), "--host", "127.0.0.1", "--port", str(port)]
        registry._mlflow()  # the child shares what is imported
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(folder, env, words))
        self.process.start()

    def _run(self, folder: Path, env: dict, words: list[str]):
        "The command `mlflow` in a session of its own, which writes into the log."
        os.setsid(), os.chdir(folder)
        for name in [k for k in os.environ if k.startswith("MLFLOW_TRACKING")]: del os.environ[name]
        os.environ.update(env)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for fd in (1, 2): os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
        from mlflow.cli import cli
        cli(words, prog_name="mlflow")

    def wait(self):
        import requests
        until = time.monotonic() + 180
        while True:
            if self.process.exitcode is not None or time.monotonic() > until:
                pytest.fail(f"mlflow server: {self.log.read_text()[-2000:]}")
            try:
                if requests.get(f"{self.url}/health", timeout=2).ok: return
            except requests.RequestException: time.sleep(0.2)

    def post(self, route, **facts):
        import requests
        answer = requests.post(f"{self.url}/api/{route}", json=facts, auth=("admin", self.password), timeout=30)
        assert answer.ok, answer.text

    def allow(self, user, kind, id):
        self.post(
            "3.0/mlflow/users/permissions/grant", username=user, resource_type=kind, resource_id=id, permission="EDIT"
        )

    def stop(self):
        try: os.killpg(self.process.pid, signal.SIGTERM)
        except ProcessLookupError: pass
        self.process.join(15)
        if self.process.exitcode is None: os.killpg(self.process.pid, signal.SIGKILL), self.process.join(5)


@pytest.fixture(scope="module")
def team(postgres, tmp_path_factory):
    "A running server that several people share."
    pytest.importorskip("flask_wtf", reason='no flask_wtf: pip install "mlflow[auth]"')
    import sqlalchemy as sa
    engine = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as db: db.execute(sa.text("create database mlflow_team"))
    engine.dispose()
    server = Server(
        tmp_path_factory.mktemp("server"), sa.make_url(postgres).set(database="mlflow_team").render_as_string(False)
    )
    try:
        server.wait()
        for user in ("ana", "ben"): server.post("2.0/mlflow/users/create", username=user, password=server.password)
        yield server
    finally: server.stop()


@pytest.fixture
def as_user(team, monkeypatch):
    "Become a user of the server."
    def become(name, password=team.password):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", team.url)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name), monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    return become


def test_a_team_shares_a_server(patients, team, as_user, home, monkeypatch, capfd):
    as_user("ana")
    v = register(patients)
    assert capfd.readouterr() == ("", "")
    promote("patients", v, reason="first release")
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert history("patients").who.tolist() == ["ana", "ana"]

    found = resolve("models:/patients@champion")  # fetched once, then kept
    assert found.folder == home/"bundles"/v.model_id and found.model_id == v.model_id
    assert load_release(found.folder).hash == patients.hash and capfd.readouterr() == ("", "")
    with monkeypatch.context() as m:
        import mlflow
        m.setattr(mlflow.artifacts, "download_artifacts", lambda **_: pytest.fail("fetched twice"))
        assert resolve("models:/patients/1").folder == found.folder
    assert mlflow.pyfunc.load_model("models:/patients@champion").predict(patients.X_test).tolist() == \
        patients.predict(patients.X_test).tolist()

    as_user("ben")  # may read, and move nothing until he is allowed to
    refused = "does not allow this to ben: EDIT is needed"
    assert current_version("patients") == "1"
    with pytest.raises(RegistryError, match=refused): promote("patients", 1, alias="canary", reason="mine")
    assert history("patients").state.tolist() == ["done", "done"] and history("patients").who.tolist() == ["ana", "ana"]
    experiment = registry._client(team.url).get_experiment_by_name("patients").experiment_id
    team.allow("ben", "experiment", experiment)
    with pytest.raises(RegistryError, match=refused): promote("patients", 1, alias="canary", reason="mine")
    assert history("patients").state.iloc[-1].startswith("failed")
    team.allow("ben", "registered_model", "patients")
    second = register(patients)
    promote("patients", second, reason="tuned")
    assert rollback("patients", reason="worse on ward B").version == "1"
    as_user("ana")
    told = history("patients", alias="champion")
    assert told[["version", "who", "state"]].values.tolist() == [
        ["1", "ana", "done"],
        ["2", "ben", "done"],
        ["1", "ben", "done"],
    ]
    assert production_at("patients", told.time.iloc[1]).who == "ben"
    assert versions("patients").aliases.tolist() == ["challenger", "champion"]


def test_four_who_promote_at_once_on_a_server(patients, team, as_user):
    as_user("ana")
    with registry._talk() as (client, uri):
        registry._ensure_model(client, uri, "rush")
        for i in range(4): client.create_model_version("rush", f"s3://nowhere/{i}")
    barrier, won, told = threading.Barrier(4), [], []

    def go(version):
        barrier.wait(20)
        try: won.append(promote("rush", version, reason=f"version {version}").version)
        except RegistryError as e: told.append(str(e))

    threads = [threading.Thread(target=go, args=(i + 1,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert len(won) + len(told) == 4 and won and all("while you were at it" in t for t in told), told
    record = history("rush")
    assert record.version.tolist() == sorted(won, key=record.version.tolist().index) and set(record.state) == {"done"}
    assert record.previous.tolist() == [None, *record.version[:-1]]
    assert current_version("rush") == record.version.iloc[-1]


def test_what_a_server_refuses(team, as_user, patients):
    as_user("ana", "wrong")
    for ask in (lambda: history("patients"), lambda: current_version("patients"), lambda: register(patients)):
        with pytest.raises(RegistryError, match="does not let ana in: set MLFLOW_TRACKING_USERNAME"): ask()
    as_user("ana")
    with pytest.raises(RegistryError, match="no model 'nobody' in the registry"): current_version("nobody")
    register(replace(patients, name="asked often"))
    with pytest.raises(RegistryError, match="no alias 'gone'"): current_version("asked often", "gone")
    with pytest.raises(RegistryError, match="no version '77'"): promote("asked often", 77, reason="x")
    began = time.monotonic()
    for _ in range(20): assert current_version("asked often", "challenger") == "1"
    assert (time.monotonic() - began)/20 < 0.5


def test_an_endpoint_follows_a_server_that_goes_away(patients, team, as_user, home, monkeypatch):
    from deploy_assist.traffic import Traffic
    as_user("ana")
    name = "followed"
    first = register(replace(patients, name=name), alias="champion")
    monkeypatch.setattr(registry, "_patience_s", 1)
    monkeypatch.setattr(registry, "_mlflow", lambda: pytest.fail("MLflow is not needed"))
    with Traffic(f"models:/{name}@champion", poll_s=0.2) as traffic:
        assert (traffic.champion.version, traffic.champion.model_id) == ("1", first.model_id)
        fetched = home/"bundles"/first.model_id
        assert load_release(fetched).hash == replace(patients, name=name).hash and not list(fetched.parent.glob(".fetching-*"))
        monkeypatch.undo(), as_user("ana"), monkeypatch.setenv("DEPLOY_ASSIST_HOME", str(home))
        monkeypatch.setattr(registry, "_patience_s", 1)
        assert resolve(f"models:/{name}@champion").folder == fetched
        second = register(replace(patients, name=name), alias=None)

        os.killpg(team.process.pid, signal.SIGSTOP)  # takes connections, says nothing
        try:
            until = time.monotonic() + 20
            while not traffic.note: assert time.monotonic() < until; time.sleep(0.05)
            assert "does not answer" in traffic.note and "version 1 goes on answering" in traffic.note and not traffic.problem
            assert traffic.champion.predict(traffic.champion.schema.example())["model"]["version"] == "1"
        finally: os.killpg(team.process.pid, signal.SIGCONT)
        monkeypatch.setattr(registry, "_patience_s", 5)
        promote(name, second, reason="tuned")
        until = time.monotonic() + 60
        while traffic.champion.version != "2": assert time.monotonic() < until, traffic.note; time.sleep(0.05)
        as_user("ana", "wrong"), traffic.poll()
        assert "does not let ana in" in traffic.note and traffic.champion.version == "2"
        as_user("ana")

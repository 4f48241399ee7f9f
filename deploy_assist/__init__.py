"""From a fitted model in a notebook to a watched deployment: the verbs, imported when they are first used."""
import sys
from types import ModuleType

__version__ = "0.1.0"

_home = {  # verb or class -> the module that it lives in
    "prepare": "prepare", "Release": "release", "load_release": "release",
    "check": "check", "Readiness": "check", "advise": "check", "Advice": "advice",
    "register": "registry", "promote": "registry", "rollback": "registry", "history": "registry",
    "serve": "endpoint", "Endpoint": "endpoint", "Client": "client", "AsyncClient": "client",
    "demo": "demo", "Demo": "demo",
    "PredictionLog": "predictions", "Schema": "schema", "Column": "schema",
    "compare": "verdict", "Verdict": "verdict",
    "report": "report", "Report": "report", "schedule": "schedule", "package": "package", "document": "document",
    "retrain": "retrain", "wizard": "wizard",
    "registry_panel": "panels", "monitor_panel": "panels", "RetrainError": "retrain", "AlertError": "alerts",
    "prove": "environment", "Proof": "environment",
}
_errors = ("DeployAssistError", "SchemaError", "ModelError", "BundleError", "UntrustedTypeError", "ProofError", "RegistryError",
           "LogError", "EndpointError", "DemoError", "ReportError", "ConfigError", "MissingExtraError")
_home |= dict.fromkeys(_errors, "errors")
__all__ = [*_home]


def __dir__():
    return [*globals(), *_home]


def __getattr__(name):
    if name not in _home:
        raise AttributeError(f"module 'deploy_assist' has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(f"deploy_assist.{_home[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    "Some verbs are named like their module (`check`, `demo`, `report`): on the package the name always means the verb."

    def __setattr__(self, name, value):
        if isinstance(value, ModuleType) and _home.get(name) == name: value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""The management API, from no model to several and back."""

from __future__ import annotations

from functools import partial

from oracle.differences import Differs, decision, error, fixed, more
from oracle.exchange import Exchange, Listener, Scenario
from oracle.until import all_ready
from oracle.views import members, only_paths, openapi_outline

__all__ = ["MANAGEMENT"]

_m = partial(Exchange, on=Listener.MANAGEMENT)
_POST, _GET, _PUT, _DELETE = "POST", "GET", "PUT", "DELETE"
_JSON = "application/json"
_ONE = "/{model_version}"


def _refused(message: str) -> Differs:
    return error(
        fixed("What a client sent wrongly is answered 400."), "400 Bad Request", "BadRequestException", message
    )


_REFUSED = (
    _m("register nothing", _POST, "/models", (90,)),
    _m("register an empty url", _POST, "/models?url=", (91,)),
    _m(
        "register by a form",
        _POST,
        "/models",
        body=b"url=absent.mar",
        content_type="application/x-www-form-urlencoded",
        differs=error(
            more("A form may carry the parameters."),
            "404 Not Found",
            "ModelNotFoundException",
            "Model not found at: absent.mar",
        ),
    ),
    _m("an invalid runtime", _POST, "/models?url=looks.mar&runtime=PYTHON", (92,)),
    _m("register what is not there", _POST, "/models?url=absent.mar", (93,)),
    _m("register a relative path", _POST, "/models?url=../x.mar", (94,)),
    _m("register from a closed port of this machine", _POST, "/models?url=http://127.0.0.1:1/x.mar", (95,)),
    _m(
        "register a file that is not there",
        _POST,
        "/models?url=file:///absent.mar",
        (96,),
        differs=error(
            decision(3),
            "404 Not Found",
            "ModelNotFoundException",
            "Given URL file:///absent.mar does not match any allowed URL(s)",
        ),
    ),
    _m(
        "register broken JSON",
        _POST,
        "/models",
        body=b"{broken",
        content_type=_JSON,
        differs=_refused(
            "The body is not valid JSON: unexpected character, expected a string key: line 1 column 2 (char 1)"
        ),
    ),
    _m(
        "register a JSON list",
        _POST,
        "/models",
        body=b"[]",
        content_type=_JSON,
        differs=_refused("The body must be a JSON object."),
    ),
    _m(
        "register an empty JSON body",
        _POST,
        "/models",
        content_type=_JSON,
        differs=_refused("Parameter url is required."),
    ),
)

_REGISTERED = (
    Exchange("the health of no models", _GET, "/ping", (19,)),
    _m("the list of no models", _GET, "/models"),
    *_REFUSED,
    _m("register without workers", _POST, "/models?url=looks.mar", (20,)),
    Exchange("the health of a model without workers", _GET, "/ping", (20,)),
    Exchange("a prediction without workers", _POST, "/predictions/looks", (71,), body=b"abc"),
    Exchange(
        "a prediction of a version without workers",
        _POST,
        "/predictions/looks/1.0",
        (71,),
        body=b"abc",
        differs=Differs(fixed("The message has no stray quote."), texts={' Version 1.0\\"': ""}),
    ),
    _m("describe itself without workers", _GET, "/models/looks?customized=true", (113,)),
    _m("register again", _POST, "/models?url=looks.mar", (98,)),
    _m(
        "register and wait", _POST, "/models?url=looks.mar&model_name=waited&initial_workers=1&synchronous=true", (100,)
    ),
    _m(
        "register and do not wait",
        _POST,
        "/models?url=looks.mar&model_name=unwaited&initial_workers=1&synchronous=false",
        (101,),
    ),
    _m("register and wait by default", _POST, "/models?url=looks.mar&model_name=by-default&initial_workers=1", (102,)),
    _m(
        "register with less than no worker",
        _POST,
        "/models?url=looks.mar&model_name=negative&initial_workers=-1",
        (103,),
    ),
    _m(
        "register by JSON",
        _POST,
        "/models?model_name=ignored",
        (104,),
        body=b'{"url": "looks.mar", "model_name": "json", "batch_size": "4", "max_batch_delay": 70}',
        content_type=_JSON,
    ),
    _m(
        "what was registered by JSON",
        _GET,
        "/models/json",
        (104,),
        view=members("modelName", "batchSize", "maxBatchDelay"),
    ),
    _m(
        "register by JSON without a delay",
        _POST,
        "/models",
        (105,),
        body=b'{"url": "looks.mar", "model_name": "undelayed"}',
        content_type=_JSON,
    ),
    _m(
        "the delay that was not given",
        _GET,
        "/models/undelayed",
        (105,),
        view=members("batchSize", "maxBatchDelay"),
        differs=Differs(fixed("A delay that is not given is the default one."), texts={"-10000": "100"}),
    ),
    _m(
        "register with a batch size that is no number",
        _POST,
        "/models?url=looks.mar&model_name=odd&batch_size=many",
        (106,),
    ),
    _m("the batch size that was no number", _GET, "/models/odd", (106,), view=members("batchSize")),
    _m("register with the workers of the archive", _POST, "/models?url=preset.mar", (107,)),
    _m(
        "the settings of the archive",
        _GET,
        "/models/preset",
        (107,),
        view=members("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "workers"),
    ),
    _m(
        "register what does not load", _POST, "/models?url=does-not-load.mar&initial_workers=1&synchronous=true", (108,)
    ),
    _m("what did not load", _GET, "/models/does-not-load", (108,)),
)

_LISTED = (
    _m("the list", _GET, "/models", (86,)),
    _m("a page of one", _GET, "/models?limit=1", (86,)),
    _m("the second page of one", _GET, "/models?limit=1&next_page_token=1", (87,)),
    _m("a negative limit", _GET, "/models?limit=-1", (88,)),
    _m("a limit that is no number", _GET, "/models?limit=abc", (88,)),
    _m("a limit that is given twice", _GET, "/models?limit=2&limit=1", (88,)),
    _m("a negative token", _GET, "/models?limit=2&next_page_token=-1", (88,)),
    _m("a token behind the end", _GET, "/models?next_page_token=99", (89,)),
    _m("a page that ends with the last model", _GET, "/models?limit=4&next_page_token=4"),
    _m(
        "a page of none",
        _GET,
        "/models?limit=0",
        differs=Differs(fixed("A page of none has no token."), texts={'  "nextPageToken": "0",\n': ""}),
    ),
)

_DESCRIBED = (
    _m("describe", _GET, "/models/waited", (111,)),
    _m("describe a version", _GET, "/models/preset/1.0", (111,)),
    _m("describe nobody", _GET, "/models/absent", (114,)),
    _m("describe no version", _GET, "/models/looks/9.9", (114,)),
    _m("register a second version", _POST, "/models?url=looks-2.mar&initial_workers=1&synchronous=true", (112,)),
    _m("describe all versions", _GET, "/models/looks/all", (112,)),
    _m("register what describes itself", _POST, "/models?url=describes.mar&initial_workers=1&synchronous=true", (113,)),
    _m("describe itself", _GET, "/models/describes?customized=true", (113,)),
    _m("readiness with a worker", _GET, "/v1/models/describes", (125, "K7")),
    _m("readiness without a worker", _GET, "/v1/models/looks", (125, "K7")),
    _m("readiness of nobody", _GET, "/v1/models/absent", ("K8",)),
    _m("readiness by POST", _POST, "/v1/models/looks", ("K8",)),
    _m(
        "the description of the API of a model",
        "OPTIONS",
        "/models/looks",
        (126,),
        view=openapi_outline,
        differs=Differs(
            fixed("The paths are those of the model, and the operation ids tell models apart."),
            texts={"{model_name}": "looks"}
            | {
                f'"{prefix}{id_}"': f'"{prefix}{id_}_looks"'
                for id_ in ("describeModel", "setAutoScale", "unregisterModel", "setDefault")
                for prefix in ("", "version_")
            },
            # Shares of the traffic, deaths and reloading are described in addition.
            extra=only_paths(*(f"/models/looks{path}" for path in ("", _ONE, f"{_ONE}/set-default"))),
        ),
    ),
    _m("PUT to the list", _PUT, "/models", (124,)),
    _m("PATCH to the list", "PATCH", "/models", (124,)),
    _m("POST to a model", _POST, "/models/looks", (124,)),
    _m("too much path", _GET, "/models/looks/1.0/more/of/it"),
)

_SCALED = (
    _m("scale up and do not wait", _PUT, "/models/looks?min_worker=1", (115,)),
    _m(
        "the worker that was not waited for",
        _GET,
        "/models/looks",
        (115,),
        until=all_ready,
        view=members("minWorkers", "workers"),
    ),
    _m("scale and wait", _PUT, "/models/looks?min_worker=1&synchronous=true", (115,)),
    _m("scale a version and wait", _PUT, "/models/looks/1.0?min_worker=2&synchronous=true", (115,)),
    _m("the number of workers", _GET, "/models/looks", (115,), view=members("minWorkers", "maxWorkers", "workers")),
    _m(
        "scale with what is ignored", _PUT, "/models/looks?min_worker=1&number_gpu=1&timeout=1&synchronous=true", (116,)
    ),
    _m("scale below the minimum", _PUT, "/models/looks?min_worker=2&max_worker=1", (116,)),
    _m("scale no version", _PUT, "/models/looks/9.9?min_worker=1", (116,)),
    _m("scale nobody", _PUT, "/models/absent?min_worker=1", (116,)),
    _m(
        "scale below nothing",
        _PUT,
        "/models/json?min_worker=-1&synchronous=true",
        differs=_refused("min_worker cannot be negative."),
    ),
    Exchange("a prediction by the worker", _POST, "/predictions/looks", (117,), body=b"abc"),
    _m("scale to nothing", _PUT, "/models/looks?min_worker=0&synchronous=true", (117,)),
    Exchange("a prediction without a worker", _POST, "/predictions/looks", (117,), body=b"abc"),
    _m("scale up again", _PUT, "/models/looks?min_worker=1&synchronous=true", (117,)),
    Exchange("a prediction by the new worker", _POST, "/predictions/looks", (117,), body=b"abc"),
    _m("register what will not load", _POST, "/models?url=does-not-load.mar", (118,)),
    _m("scale what does not load", _PUT, "/models/does-not-load?min_worker=1&synchronous=true", (118,)),
    _m("forget what does not load", _DELETE, "/models/does-not-load"),
)

_VERSIONS = (
    Exchange("the default version", _POST, "/predictions/looks", (120,), body=b"abc"),
    _m("another default version", _PUT, "/models/looks/2.0/set-default", (119,)),
    Exchange("the new default version", _POST, "/predictions/looks", (120,), body=b"abc"),
    _m("a default version that is not there", _PUT, "/models/looks/9.9/set-default", (119,)),
    _m("a default version of nobody", _PUT, "/models/absent/1.0/set-default", (119,)),
    _m(
        "the default version by GET",
        _GET,
        "/models/looks/1.0/set-default",
        differs=error(
            fixed("Only PUT sets the default version; by other methods TorchServe describes or unregisters it."),
            "405 Method Not Allowed",
            "MethodNotAllowedException",
            "Requested method is not allowed, please refer to API document.",
        ),
    ),
    _m("unregister the default version", _DELETE, "/models/looks/2.0", (121,)),
    _m("unregister no version", _DELETE, "/models/looks/9.9", (122,)),
    _m("unregister nobody", _DELETE, "/models/absent", (122,)),
    _m("unregister the other version", _DELETE, "/models/looks/1.0", (121,)),
    _m("unregister the last version", _DELETE, "/models/looks", (121,)),
    _m("the model that was unregistered", _GET, "/models/looks", (121,)),
    _m("the archive of the store remains", _POST, "/models?url=looks.mar", (123,)),
    _m(
        "register what needs too much memory",
        _POST,
        "/models?url=loads-too-much.mar&initial_workers=1&synchronous=true",
        (109,),
    ),
    _m(
        "what needed too much memory",
        _GET,
        "/models/loads-too-much",
        view=members("modelName", "workers"),
        differs=error(
            fixed("A registration that fails leaves nothing behind, for want of memory neither."),
            "404 Not Found",
            "ModelNotFoundException",
            "Model not found: loads-too-much",
        ),
    ),
)

MANAGEMENT = Scenario(
    "management",
    "The management API, from no model to several and back.",
    (*_REGISTERED, *_LISTED, *_DESCRIBED, *_SCALED, *_VERSIONS),
)

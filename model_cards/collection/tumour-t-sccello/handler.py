"""What Inference Endpoints load from a model's repository: cells come in, embeddings and cell types go out.

The code is in ``endpoint_service.py`` beside this file, which transformers loads as it loads the code of the model.
"""

from typing import Any

from transformers.dynamic_module_utils import get_class_from_dynamic_module


class EndpointHandler:
    """A model as an Inference Endpoint serves it.

    Parameters
    ----------
    path
        Folder of the model, or of an adapter, whose base is loaded from the Hub.
    """

    def __init__(self, path: str = ""):
        service = get_class_from_dynamic_module("endpoint_service.CellService", path or ".")
        self.service = service(path or ".")

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Parameters
        ----------
        data
            ``inputs``: ``{gene: count}``, a list of these, or ``{"h5ad": base64}``; ``parameters``: see the service.

        Raises
        ------
        ValueError
            If the request is wrong, in a sentence; the endpoint answers it with the status 400.
        """
        return self.service(data)

"""A small streaming reverse proxy: the app behind the middleware for ``serve`` and the examples.

.. code-block:: python

    app = ScaleZeroMiddleware(FunctionProxy(), provider)

Bodies are streamed both ways and never held whole, content codings stay as they are, redirects are passed
on, not followed. A request goes out as it came in but for what RFC 9110 section 7.6.1 demands of an
intermediary, and the ``Forwarded`` and ``X-Forwarded-*`` headers.

What a function answers is read by httptools (llhttp), which the extra ``proxy`` brings: what RFC 9112 calls
invalid is answered with 502, and never repaired or passed on.
"""

from .app import FunctionProxy

__all__ = ["FunctionProxy"]

"""Tests that every provider and every coordination store must pass, for their authors to run.

Subclass the contract in a test module and give it a fixture ``bench``::

    from scalezero_wsgi.testing import ProviderBench, ProviderContract


    class TestMyProvider(ProviderContract):
        @pytest.fixture
        def bench(self) -> ProviderBench:
            return ProviderBench(provider=MyProvider(...), ready=Function("hello"), ...)

``pytest.register_assert_rewrite("scalezero_wsgi.testing")`` in ``conftest.py`` makes failures readable. A
test passes without checking anything where the bench has ``None`` for what it needs. Use
:class:`CoordinationContract` in the same way, with a :class:`CoordinationBench`.
"""

from .coordination import COORDINATION_NAMES, CoordinationBench, CoordinationContract
from .providers import HOSTILE_NAMES, ProviderBench, ProviderContract

__all__ = [
    "COORDINATION_NAMES",
    "HOSTILE_NAMES",
    "CoordinationBench",
    "CoordinationContract",
    "ProviderBench",
    "ProviderContract",
]

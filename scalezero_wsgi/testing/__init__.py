"""What any provider and any coordination store must do, as tests that its author can run.

Subclass the contract in a test module and give it a fixture ``bench`` that knows the engine::

    from scalezero_wsgi.testing import ProviderBench, ProviderContract


    class TestMyProvider(ProviderContract):
        @pytest.fixture
        def bench(self) -> ProviderBench:
            return ProviderBench(provider=MyProvider(...), ready=Function("hello"), ...)

With pytest, ``pytest.register_assert_rewrite("scalezero_wsgi.testing")`` in ``conftest.py`` gives readable
failures. Where a bench says ``None``, the contract says nothing. :class:`CoordinationContract` is used in
the same way, with a :class:`CoordinationBench`.
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

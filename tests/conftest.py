import pytest

pytest.register_assert_rewrite("scalezero_wsgi.testing")

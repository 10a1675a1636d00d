from scalezero_wsgi.proxy import FunctionProxy


def make_app(global_conf):
    return FunctionProxy()

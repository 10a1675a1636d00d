from pathlib import Path

from paste.deploy import loadapp

application = loadapp(f"config:{Path(__file__).with_name('proxy.ini')}")

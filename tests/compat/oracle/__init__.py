"""The oracle: what TorchServe 0.12.0 answered, recorded from the real server, and the suite that asks for it.

One suite of exchanges in :mod:`oracle.scenarios`. ``make oracle`` sends them to TorchServe and writes its answers to
``golden``; the tests send them to Mariner and compare. Nobody writes a golden answer by hand.
"""

"""The ledger: every checkable sentence of the document, what it comes to, and whether it holds, reading by reading.

A claim is a check under the decorator `base.claim`, which holds the document's words; it stands in the file of its
subject. `built` has the models that the checks look at, `tried` the small parts that they try out; `verdicts` has the
rules, `ledger` lists, computes and finds claims, `told` puts them into words.
"""

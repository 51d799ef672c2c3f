"""The literature's experiments on normalization, run with these layers: `python -m bench.study`.

claims.py says what each experiment claims and which inequalities (gates) decide it; experiments/ runs them, a file
each; records.py keeps what came out, verdict.py judges it and page.py shows it. All but experiments/ imports no torch.
"""

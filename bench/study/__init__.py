"""The literature's experiments on normalization, run with these layers: `python -m bench.study`.

experiments/ has a module an experiment: its claim, the inequalities (gates) that decide it, and the code that runs it.
runner.py runs them, records.py keeps the results, study.py judges them and page.py shows them. Torch is imported only
where something is trained.
"""

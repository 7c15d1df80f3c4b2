"""The tests of the suite: subjects with one defect each, which the suite must find (``nox -s mutants``)."""

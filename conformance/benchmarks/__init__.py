"""What the plugin costs, beside the least that it could cost, measured in one run: ``nox -s benchmark``.

Every figure that is compared is measured in turns with what it is compared to (A B A B …), on servers of the
run's own, so that ratios hold where seconds do not. A figure never fails a run; a failed request or a wrong
answer does.
"""

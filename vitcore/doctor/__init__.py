"""What a program asks of a device, said before it is asked: counts, estimates, and findings with their Python line.

One idea a file: `static` what the lowered text says, `costs` what each claimed kernel flushes, `traffic` what travels,
`memory` an estimate of the peak, `watch` what a run counts, `probe` which line of Python did it, `diagnose` what of that is
wrong, `report` the tables and the JSON, `timeline` the drawing, `examination` all of it.
"""

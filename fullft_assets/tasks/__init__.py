"""The tasks, one folder each: its object (`task`), recipe, metrics' input and evaluation (`assessment`,
`scoring`), baselines, report parts.
"""

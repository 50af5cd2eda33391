"""Sample deliveries: real data from packages, written as a labelling job or an archive would deliver them,
and a real model.
"""

from fullft_assets.demos.preparation import brings_model, is_dormant, prepare

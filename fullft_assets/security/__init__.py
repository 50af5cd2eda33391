"""security: what the platform is open to, who may overrule a gate, and the record of what was done."""

from fullft_assets.security.audit import audit, audit_and_record, reason_to_keep
from fullft_assets.security.findings import LOGIN_KEY_VARIABLE, Finding
from fullft_assets.security.overruling import PERSON_TAG, Act, Person, overrule
from fullft_assets.security.record import Entry, Record, append, read_record

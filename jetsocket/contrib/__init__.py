"""Rooms for where people work: one for each framework, and a page that shows what the pools do.

Each uses public names only, and knows no other room but `status` and `commands`.
"""

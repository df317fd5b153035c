"""Domains on the one core: records become items and relations, answers become what the domain calls them."""

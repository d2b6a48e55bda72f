"""What report.py is made of: collect (folders into a table) -> analysis (who, which conditions,
which contrasts) -> figures, tables, page. No torch.
"""

"""What report.py is made of: from workdirs to arms, figures and one page."""

"""What people see.

views.py        what is shown, as plain data
console.py      shows it, live or line by line; screens.py, chart.py and quantities.py draw it
"""

"""The report of one or several runs: `facts` reads what lies beside their rows."""

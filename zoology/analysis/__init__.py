"""From the rows on disk to the frontier and its picture. Needs no torch: a laptop can plot what a cluster measured.

    rows = records.load_runs([Path("runs/first"), Path("runs/second")])
    table = frontier.points(rows)
    plots.save(plots.plot_frontier(table), Path("frontier.png"))
    report.write_report([Path("runs/first"), Path("runs/second")], Path("report.html"))

`records` reads, `frontier` computes, `plots` draws, `tables` writes, `report` puts all on one page. Each function that
returns numbers is apart from the one that draws them.
"""

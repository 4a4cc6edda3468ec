-- What a restart tells the join before it reads on: facts that may be older than the entry with which it begins. Stores made
-- before there were facts get this table when they are opened.
CREATE TABLE IF NOT EXISTS fact (
    id BLOB PRIMARY KEY,
    -- The journal's entry that told it, and the one since which it is over (a main process ended, a node booted).
    entry INTEGER NOT NULL,
    over INTEGER,
    node TEXT NOT NULL,
    boot TEXT NOT NULL,
    container TEXT NOT NULL,
    -- `pod`: what an audit event told of a pod, JSON. `record`: seclog.v1.NodeRecord, of a main process or a late name.
    kind TEXT NOT NULL,
    fact BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS fact_entry ON fact (entry);
CREATE INDEX IF NOT EXISTS fact_container ON fact (node, container);
CREATE INDEX IF NOT EXISTS fact_over ON fact (over) WHERE over IS NOT NULL;

-- Ids are 16 bytes. Times are nanoseconds since 1970; what has not ended has the greatest number. `told` numbers what was
-- told, sessions and findings alike, in that order.

-- One row.
CREATE TABLE about (
    -- Random: another one where the store was made anew.
    store BLOB NOT NULL,
    cluster TEXT NOT NULL,
    told INTEGER NOT NULL,
    -- The journal entry from which on a restart reads; what was told up to that time is here.
    replay_from INTEGER NOT NULL,
    told_until INTEGER NOT NULL,
    -- Entries before this one are in `activity`, as far as they belong there. Another epoch: another journal.
    read_until INTEGER NOT NULL,
    epoch INTEGER NOT NULL
);

-- The last revision of each session; of what can be asked for.
CREATE TABLE session (
    id BLOB PRIMARY KEY,
    revision INTEGER NOT NULL,
    told INTEGER NOT NULL,
    told_at INTEGER NOT NULL,
    begun INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    evidence TEXT NOT NULL,
    username TEXT NOT NULL,
    impersonated TEXT NOT NULL,
    namespace TEXT NOT NULL,
    pod TEXT NOT NULL,
    container TEXT NOT NULL,
    node TEXT NOT NULL,
    -- Whose activity is its.
    root BLOB
) WITHOUT ROWID;
CREATE INDEX session_told ON session (told);
CREATE INDEX session_begun ON session (begun);
CREATE INDEX session_ended ON session (ended);
CREATE INDEX session_username ON session (username, begun);
CREATE INDEX session_impersonated ON session (impersonated, begun) WHERE impersonated != '';
CREATE INDEX session_pod ON session (namespace, pod, container, begun);
CREATE INDEX session_kind ON session (kind, begun);
CREATE INDEX session_evidence ON session (evidence, begun);
CREATE INDEX session_root ON session (root) WHERE root IS NOT NULL;

-- The same as told.
CREATE TABLE document (
    session BLOB PRIMARY KEY,
    json TEXT NOT NULL
);

-- Every revision in short.
CREATE TABLE revision (
    told INTEGER PRIMARY KEY,
    told_at INTEGER NOT NULL,
    session BLOB NOT NULL,
    revision INTEGER NOT NULL,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    evidence TEXT NOT NULL,
    outcome TEXT NOT NULL,
    username TEXT NOT NULL,
    programs INTEGER NOT NULL,
    findings INTEGER NOT NULL,
    UNIQUE (session, revision)
);

CREATE TABLE finding (
    id BLOB PRIMARY KEY,
    told INTEGER NOT NULL,
    told_at INTEGER NOT NULL,
    time INTEGER NOT NULL,
    code TEXT NOT NULL,
    session BLOB,
    json TEXT NOT NULL
);
CREATE INDEX finding_told ON finding (told);
CREATE INDEX finding_time ON finding (time);
CREATE INDEX finding_code ON finding (code, time);
CREATE INDEX finding_session ON finding (session) WHERE session IS NOT NULL;

-- Codes that the last revision of a session names.
CREATE TABLE names (
    code TEXT NOT NULL,
    session BLOB NOT NULL,
    finding BLOB NOT NULL,
    PRIMARY KEY (code, session, finding)
) WITHOUT ROWID;
CREATE INDEX names_session ON names (session);

-- Node records below one session root: zstd over seclog.v1.NodeRecord, each with its length before it.
CREATE TABLE activity (
    root BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    read_until INTEGER NOT NULL,
    written_at INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,
    not_kept INTEGER NOT NULL,
    records BLOB NOT NULL,
    PRIMARY KEY (root, epoch, read_until)
);
CREATE INDEX activity_written ON activity (written_at);

-- What retention let go.
CREATE TABLE deleted (
    why TEXT PRIMARY KEY,
    sessions INTEGER NOT NULL,
    findings INTEGER NOT NULL,
    oldest INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    last_at INTEGER NOT NULL
);

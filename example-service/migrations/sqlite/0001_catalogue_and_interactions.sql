-- The same tables as in ../postgres; the two differ only where SQLite stores a table better
-- (INTEGER PRIMARY KEY is the row id itself) and in how text is ordered.

CREATE TABLE entities (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    -- Empty: none.
    category TEXT NOT NULL,
    -- Taken from `sequences` at every write, so that a reader asks for what changed since it last looked.
    revision BIGINT NOT NULL
);
CREATE INDEX entities_by_revision ON entities (revision);

-- Search: the words of an entity. SQLite orders text by its bytes, as the search for a prefix needs.
CREATE TABLE entity_terms (
    term TEXT NOT NULL,
    entity_id BIGINT NOT NULL,
    PRIMARY KEY (term, entity_id)
) WITHOUT ROWID;
CREATE INDEX entity_terms_by_entity ON entity_terms (entity_id, term);

CREATE TABLE interactions (
    -- From `sequences`: without gaps, and visible in its own order, whoever writes.
    id INTEGER PRIMARY KEY,
    user_id BIGINT NOT NULL,
    entity_id BIGINT NOT NULL,
    -- 1 view, 2 like, 3 purchase.
    kind BIGINT NOT NULL,
    -- Unix time, milliseconds.
    occurred_at_ms BIGINT NOT NULL
);
CREATE INDEX interactions_by_user ON interactions (user_id, id);

-- Last number given out. A writer holds the row until it commits, so numbers become visible in order.
CREATE TABLE sequences (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO sequences (name, value) VALUES ('entities', 0), ('interactions', 0);

-- One row: what tells this database from another one in a cache that they share.
CREATE TABLE installation (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE visits (
    n bigserial PRIMARY KEY,
    id varchar(64) NOT NULL,
    server text NOT NULL,
    at_us bigint NOT NULL,
    checksum text NOT NULL
);
CREATE INDEX visits_by_id ON visits (id);
CREATE SEQUENCE invoice_number START 1000 INCREMENT 7;
CREATE TYPE state AS ENUM ('open', 'paid', 'sent');
CREATE TABLE invoices (
    number bigint PRIMARY KEY DEFAULT nextval('invoice_number'),
    state state NOT NULL DEFAULT 'open',
    items jsonb NOT NULL,
    total numeric(12,2) NOT NULL CHECK (total >= 0)
);
CREATE INDEX invoices_items ON invoices USING gin (items);
CREATE INDEX invoices_open ON invoices (total) WHERE state = 'open';
CREATE FUNCTION set_checksum() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.checksum := md5(NEW.id);
    RETURN NEW;
END
$$;
CREATE TRIGGER visits_checksum BEFORE INSERT ON visits FOR EACH ROW EXECUTE FUNCTION set_checksum();
CREATE FUNCTION count_visits() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM visits';
CREATE VIEW visits_per_server AS SELECT server, count(*) AS visits FROM visits GROUP BY server;
CREATE MATERIALIZED VIEW totals AS SELECT state, sum(total) AS total FROM invoices GROUP BY state;
COMMENT ON TABLE visits IS 'Who came, and who answered';
INSERT INTO invoices (items, total)
    SELECT jsonb_build_object('name', 'Käse ' || i, 'amount', i % 9), i * 1.13
    FROM generate_series(1, 2000) AS i;
REFRESH MATERIALIZED VIEW totals;

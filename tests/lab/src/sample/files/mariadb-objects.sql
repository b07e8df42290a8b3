CREATE TABLE visits (
    n BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id VARCHAR(64) NOT NULL,
    server VARCHAR(64) NOT NULL,
    at_us BIGINT NOT NULL,
    checksum INT UNSIGNED NOT NULL DEFAULT 0,
    KEY by_id (id)
) ENGINE=InnoDB;
CREATE TABLE products (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(100) CHARACTER SET utf8mb4 NOT NULL,
    latin VARCHAR(100) CHARACTER SET latin1 NOT NULL,
    price DECIMAL(10,2) NOT NULL,
    picture BLOB,
    tags SET('new','sale','gone') NOT NULL DEFAULT '',
    changed TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    FULLTEXT KEY words (name)
) ENGINE=InnoDB;
CREATE TABLE orders (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    product INT UNSIGNED NOT NULL,
    amount INT NOT NULL CHECK (amount > 0),
    total DECIMAL(12,2) NOT NULL DEFAULT 0,
    CONSTRAINT of_product FOREIGN KEY (product) REFERENCES products (id) ON DELETE CASCADE
) ENGINE=InnoDB;
CREATE VIEW visits_per_server AS SELECT server, COUNT(*) AS visits FROM visits GROUP BY server;
DELIMITER //
CREATE TRIGGER visits_checksum BEFORE INSERT ON visits FOR EACH ROW
BEGIN
    SET NEW.checksum = CRC32(NEW.id);
END//
CREATE FUNCTION count_visits() RETURNS BIGINT READS SQL DATA
BEGIN
    DECLARE found BIGINT;
    SELECT COUNT(*) INTO found FROM visits;
    RETURN found;
END//
CREATE PROCEDURE discount(IN percent INT)
BEGIN
    UPDATE products SET price = price * (100 - percent) / 100;
END//
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2026-01-01 03:00:00' ON COMPLETION PRESERVE
DO DELETE FROM orders WHERE amount = 1000000//
DELIMITER ;
INSERT INTO products (name, latin, price, picture, tags)
    SELECT CONCAT('Käse № ', seq, ' 🧀'), CONCAT('Grüße ', seq), seq / 7, UNHEX(SHA2(seq, 512)), 'new,sale'
    FROM seq_1_to_2000;
INSERT INTO orders (product, amount, total) SELECT seq, 1 + seq MOD 5, seq FROM seq_1_to_1500;

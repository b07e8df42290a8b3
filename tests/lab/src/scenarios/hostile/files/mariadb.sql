CREATE TABLE hostile (
    id INT AUTO_INCREMENT PRIMARY KEY,
    text TEXT COMMENT 'a column
\! touch /run/lock/ran-column-comment',
    word VARCHAR(200) DEFAULT '
\! touch /run/lock/ran-default'
) COMMENT='a table */
\! touch /run/lock/ran-table-comment
system touch /run/lock/ran-table-comment';
INSERT INTO hostile (text) VALUES ('
\! touch /run/lock/ran-row
'), ('\n\\! touch /run/lock/ran-row\n'), (''';
\! touch /run/lock/ran-row
--'), ('LOAD DATA LOCAL INFILE ''/etc/passwd'' INTO TABLE hostile (text);'), ('
source /etc/ferry-canary/secret
\. /root/canary/secret
tee /run/lock/ran-tee
DELIMITER //
'), ('/*! SELECT 1 INTO OUTFILE ''/run/lock/ran-outfile'' */;'), (UNHEX('005C2120746F756368'));
CREATE TABLE `new
\! touch /run/lock/ran-table-name` (a INT);
CREATE VIEW hostile_view AS SELECT '
\! touch /run/lock/ran-view' AS `a
\! touch /run/lock/ran-view-column`, COUNT(*) AS n FROM hostile;
DELIMITER //
CREATE PROCEDURE hostile_procedure() COMMENT 'a routine
\! touch /run/lock/ran-routine-comment'
BEGIN
    /*
\! touch /run/lock/ran-routine
    */
    -- LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE hostile;
    SELECT 1;
END//
DELIMITER ;
DELIMITER //
CREATE TRIGGER hostile_trigger BEFORE INSERT ON hostile FOR EACH ROW
BEGIN
    /*
\! touch /run/lock/ran-trigger
    */
    SET NEW.word = 'LOAD DATA LOCAL INFILE "/etc/passwd"';
END//
CREATE EVENT hostile_event ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01 00:00:00' COMMENT 'an event
\! touch /run/lock/ran-event'
DO SELECT '
\! touch /run/lock/ran-event'//
DELIMITER ;

CREATE DATABASE demo_shop CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;
CREATE USER 'demo_shop'@'localhost' IDENTIFIED BY 'sample-shop-password';
GRANT ALL PRIVILEGES ON demo_shop.* TO 'demo_shop'@'localhost';

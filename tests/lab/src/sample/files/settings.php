<?php
const SHOP_DSN = 'mysql:unix_socket=/run/mysqld/mysqld.sock;dbname=demo_shop;charset=utf8mb4';
const SHOP_USER = 'demo_shop';
const SHOP_PASSWORD = 'sample-shop-password';
const APP_DSN = 'pgsql:host=127.0.0.1;dbname=demo_app';
const APP_USER = 'demo_app';
const APP_PASSWORD = 'sample-app-password';
const VISITS_FILE = '/home/demo/data/visits.log';
